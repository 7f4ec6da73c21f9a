"""N:M sparse training inside other libraries' trainers: a callback for each, and a check of what it leaves.

`nm2trt.integrations.huggingface` needs the extra `huggingface`, `nm2trt.integrations.lightning` the extra `lightning`.
Neither is imported before its module is.
"""
