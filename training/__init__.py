"""N:M sparse training: the sparsifier for any training loop, and the loop of `nm2trt train`."""

if __name__ != "nm2trt.training":
    # Without this, a checkout on the path would offer the same files under two names.
    raise ImportError("this folder is imported as nm2trt.training (run: pip install -e .)")
