"""A build -> what inference servers load, and the check that they serve it."""

from nm2trt.serve.deploy import check_manifest_values, compose, dockerfile, inference_service, serving_runtime
from nm2trt.serve.extras import package_deepstream, package_onnxruntime
from nm2trt.serve.repository import check_repository, model_folders, read_model
from nm2trt.serve.source import read_build
from nm2trt.serve.triton import Packaged, PackageRequest, package_triton

__all__ = [
    "PackageRequest",
    "Packaged",
    "check_manifest_values",
    "check_repository",
    "compose",
    "dockerfile",
    "inference_service",
    "model_folders",
    "package_deepstream",
    "package_onnxruntime",
    "package_triton",
    "read_build",
    "read_model",
    "serving_runtime",
]
