"""A build -> what inference servers load, and the check that they serve it."""

from nm2trt.serve.deploy import (
    Surroundings,
    Written,
    check_manifest_values,
    check_surroundings,
    compose,
    dockerfile,
    inference_service,
    packaged_documents,
    serving_runtime,
    write_around,
)
from nm2trt.serve.extras import package_deepstream, package_onnxruntime
from nm2trt.serve.repository import check_repository, model_folders, read_model
from nm2trt.serve.source import read_build
from nm2trt.serve.triton import Packaged, PackageRequest, package_triton
from nm2trt.serve.versions import Changed, remove_version, roll_back

__all__ = [
    "Changed",
    "PackageRequest",
    "Packaged",
    "Surroundings",
    "Written",
    "check_manifest_values",
    "check_repository",
    "check_surroundings",
    "compose",
    "dockerfile",
    "inference_service",
    "model_folders",
    "package_deepstream",
    "package_onnxruntime",
    "package_triton",
    "packaged_documents",
    "read_build",
    "read_model",
    "remove_version",
    "roll_back",
    "serving_runtime",
    "write_around",
]
