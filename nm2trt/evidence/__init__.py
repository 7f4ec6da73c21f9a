"""Reads what TensorRT writes, in all its versions: build logs, inspector JSON, trtexec exports."""
