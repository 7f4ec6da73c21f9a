"""Names of files that several stages write and read."""

from __future__ import annotations

ONNX_FILE = "model.onnx"
"""The network in a build folder, and in a version folder of an inference server, which knows it by this name."""
