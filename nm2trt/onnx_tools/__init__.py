"""ONNX files: reading, shapes, constants, precision and writing.

Imports nothing: onnx-ir takes longer to load than most checkpoints take to check.
"""
