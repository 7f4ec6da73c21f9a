"""INT8 by Q/DQ nodes in the ONNX graph: ranges, placement, sensitivity, and the proof that the pattern survived."""

if __name__ != "nm2trt.calibration":
    # Without this, a checkout on the path would offer the same files under two names.
    raise ImportError("this folder is imported as nm2trt.calibration (run: pip install -e .)")
