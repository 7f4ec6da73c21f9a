"""Files around a repository: Dockerfile, compose file, KServe manifests.

They lie at the repository's root, where Triton looks for folders only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm2trt.artifacts import write_atomic
from nm2trt.artifacts.package import PackageDocument, PlanRequirement
from nm2trt.errors import ConfigError
from nm2trt.serve.releases import library_version

MARK = "Written by nm2trt package; a changed first line keeps it from being written again."

_HEALTHY = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def write_marked(path: Path, text: str) -> bool:
    """Write a file of ours; leave one alone that somebody made his own. Returns whether it was written."""
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        return False
    write_atomic(path, text)
    return True


def requirements(documents: Sequence[PackageDocument]) -> list[PlanRequirement]:
    """What the newest versions' plans need."""
    return [plan for document in documents for plan in document.versions[-1].plans]


def dockerfile(documents: Sequence[PackageDocument], *, image: str | None) -> str:
    """Write a Dockerfile that puts the repository into Triton's image and refuses one with another TensorRT.

    Args:
        documents: The repository's models.
        image: Triton's image; None where nobody said which, and the build must be told.
    """
    lines = [
        f"# {MARK}",
        "# docker build --build-arg TRITON_IMAGE=nvcr.io/nvidia/tritonserver:YY.MM-py3 -t models .",
        f"ARG TRITON_IMAGE{'' if image is None else '=' + image}",
        "FROM ${TRITON_IMAGE}",
    ]
    versions = sorted({plan.tensorrt for plan in requirements(documents)})
    for version in versions:
        file = f"libnvinfer.so.{library_version(version)}"
        lines += [
            f"# The plans were built by TensorRT {version} and load in no other.",
            f"RUN find / -xdev -name '{file}' 2>/dev/null | grep -q . \\",
            f"    || {{ echo 'this image has no {file}: take the Triton release that has it' >&2; exit 1; }}",
        ]
    if any(document.platform == "python" for document in documents):
        lines += [
            "# The Python backend's models run in ONNX Runtime.",
            "RUN pip install --no-cache-dir onnxruntime",
        ]
    for document in documents:
        lines.append(f"COPY {document.model} /models/{document.model}")
    lines += [
        "EXPOSE 8000 8001 8002",
        'CMD ["tritonserver", "--model-repository=/models", "--disable-auto-complete-config"]',
    ]
    return "\n".join(lines) + "\n"


def compose(documents: Sequence[PackageDocument], *, image: str | None) -> str:
    """Write a compose file that builds and starts the Dockerfile beside it, on loopback."""
    service: dict[str, Any] = {
        "build": {"context": ".", "args": {"TRITON_IMAGE": image or "${TRITON_IMAGE:?name the Triton image}"}},
        "ports": [f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)],
        "shm_size": "1gb",
        "healthcheck": {
            # The -py3 images have Python; whether they have curl depends on the release.
            "test": ["CMD", "python3", "-c", _HEALTHY],
            "interval": "10s",
            "timeout": "5s",
            "retries": 12,
        },
        "restart": "unless-stopped",
    }
    if any(document.gpu for document in documents):
        devices = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return f"# {MARK}\n{_yaml({'services': {'triton': service}})}"


def runtime_name(image: str) -> str:
    """Name of the cluster's runtime for an image, "nm2trt-triton-26-07-py3"."""
    tag = re.sub(r"[^a-z0-9]+", "-", image.rsplit("/", 1)[-1].partition(":")[2].lower()).strip("-") or "latest"
    return f"nm2trt-triton-{tag}"[:63].rstrip("-")


def serving_runtime(documents: Sequence[PackageDocument], *, image: str) -> str:
    """Write KServe's ClusterServingRuntime: how the cluster starts this Triton for a model repository."""
    container: dict[str, Any] = {
        "name": "kserve-container",
        "image": image,
        "args": [
            "tritonserver",
            "--model-store=/mnt/models",
            "--http-port=8080",
            "--grpc-port=9000",
            "--allow-http=true",
            "--allow-grpc=true",
            "--disable-auto-complete-config",
        ],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}},
    }
    spec = {
        "supportedModelFormats": [{"name": "triton", "version": "2", "autoSelect": False}],
        "protocolVersions": ["v2", "grpc-v2"],
        "containers": [container],
    }
    annotations = {f"nm2trt/tensorrt-{at}": one for at, one in enumerate(_versions(documents))}
    manifest = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterServingRuntime",
        "metadata": {"name": runtime_name(image), **({"annotations": annotations} if annotations else {})},
        "spec": spec,
    }
    return f"# {MARK}\n{_yaml(manifest)}"


def check_manifest_values(model: str, *, storage_uri: str, canary: int | None) -> str:
    """Check what the user gives for an InferenceService; returns its name, a Kubernetes name made of the model's.

    Raises:
        ConfigError: The model's name makes none, or a value is out of range.
    """
    name = model.lower().replace("_", "-").replace(".", "-")
    if not _LABEL.fullmatch(name):
        raise ConfigError(
            f"{model!r} makes no Kubernetes name", where="--name", mend="begin and end with a letter or digit"
        )
    if "://" not in storage_uri:
        raise ConfigError(
            f"{storage_uri!r} is no URI",
            where="--storage-uri",
            mend="write pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://...",
        )
    if canary is not None and not 0 <= canary <= 100:
        raise ConfigError(f"{canary} is outside 0..100", where="--canary")
    return name


def inference_service(
    document: PackageDocument,
    *,
    image: str,
    storage_uri: str,
    canary: int | None = None,
    documents: Sequence[PackageDocument],
) -> str:
    """Write KServe's InferenceService for a repository; its one Triton serves all models in it.

    Args:
        document: The model that gives the service its name.
        image: Triton's image, which names the runtime.
        storage_uri: Where the cluster finds the repository.
        canary: Per cent of the traffic for this revision of the service, 0 to 100.
        documents: All models of the repository.

    Raises:
        ConfigError: The name is no Kubernetes name, or a value is out of range.
    """
    name = check_manifest_values(document.model, storage_uri=storage_uri, canary=canary)
    model: dict[str, Any] = {
        "modelFormat": {"name": "triton", "version": "2"},
        "runtime": runtime_name(image),
        "protocolVersion": "v2",
        "storageUri": storage_uri,
    }
    if any(one.gpu for one in documents):
        model["resources"] = {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    predictor: dict[str, Any] = {"minReplicas": 1, "model": model}
    if canary is not None:
        predictor["canaryTrafficPercent"] = canary
    newest = document.versions[-1]
    metadata = {
        "name": name,
        "annotations": {
            "nm2trt/build-sha256": newest.build_sha256,
            "nm2trt/arm": newest.arm,
            **{f"nm2trt/sm-{plan.sm}": plan.tensorrt for plan in newest.plans},
        },
    }
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": predictor},
    }
    return f"# {MARK}\n{_yaml(manifest)}"


def _versions(documents: Sequence[PackageDocument]) -> list[str]:
    return sorted({plan.tensorrt for plan in requirements(documents)})


def _yaml(value: Any, depth: int = 0) -> str:
    """Write YAML of plain mappings, lists and scalars; every string is quoted as JSON does, which YAML reads alike."""
    pad = "  " * depth
    if isinstance(value, dict):
        lines = ""
        for key, one in value.items():
            nested = isinstance(one, dict | list) and bool(one)
            lines += f"{pad}{key}:\n{_yaml(one, depth + 1)}" if nested else f"{pad}{key}: {json.dumps(one)}\n"
        return lines
    lines = ""
    for one in value:
        if isinstance(one, dict):
            body = _yaml(one, depth + 1)
            lines += f"{pad}- {body[len(pad) + 2 :]}"
        else:
            lines += f"{pad}- {json.dumps(one)}\n"
    return lines
