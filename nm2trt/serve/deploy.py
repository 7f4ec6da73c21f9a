"""Files around a repository: Dockerfile, compose file, KServe manifests.

They lie at the repository's root, where Triton looks for folders only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nm2trt.artifacts import write_atomic
from nm2trt.artifacts.package import PackageDocument, PlanRequirement
from nm2trt.errors import ConfigError
from nm2trt.serve.lock import locked
from nm2trt.serve.releases import library_version
from nm2trt.serve.repository import CONFIG, read_document

MARK = "Written by nm2trt package; a changed first line keeps it from being written again."

_HEALTHY = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""KServe's own rule for a service's name (its webhook's IsvcNameFmt); Knative and Kubernetes services want the same."""
_LONGEST_SERVICE = 63 - len("-predictor")
"""KServe makes a Kubernetes service NAME-predictor of it, and such a name is a DNS label."""
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'\\]+")
_METRICS_PORT = 8002


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the user says of the container or cluster."""

    image: str | None = None
    """Triton's image; None: what an earlier Dockerfile of ours names, or nothing."""
    kserve: bool = False
    storage_uri: str | None = None
    canary: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Files at a repository's root."""

    files: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Not written, since somebody changed them."""


def check_surroundings(model: str, wanted: Surroundings) -> None:
    """Check what the user says before a version is written.

    Raises:
        ConfigError: A value is missing, out of range, or makes no manifest.
    """
    if wanted.image is not None and not _IMAGE.fullmatch(wanted.image):
        raise ConfigError(
            f"{wanted.image!r} is no container image", where="--image", hint="write REGISTRY/REPOSITORY:TAG"
        )
    if not wanted.kserve:
        return
    given = {"--image": wanted.image, "--storage-uri": wanted.storage_uri}
    if lacking := [option for option, value in given.items() if value is None]:
        raise ConfigError(f"kserve needs {' and '.join(lacking)}: the manifests name what your cluster has")
    check_manifest_values(model, storage_uri=wanted.storage_uri or "", canary=wanted.canary)


def packaged_documents(repository: Path) -> list[PackageDocument]:
    """Read the package.json of every model in a repository that we packaged.

    Raises:
        InputError: One cannot be read.
    """
    if not repository.is_dir():
        return []
    folders = sorted(one for one in repository.iterdir() if (one / CONFIG).is_file())
    documents = [read_document(one) for one in folders if (one / PackageDocument.FILE).is_file()]
    return [document for document in documents if document.served]


def write_around(
    repository: Path, document: PackageDocument, wanted: Surroundings, *, on_wait: Callable[[str], None] | None = None
) -> Written:
    """Write the files at a repository's root, of all models in it as they are now.

    Args:
        repository: Holds at least one model.
        document: The model that gives a KServe service its name.
        wanted: What the user says of the container or cluster.
        on_wait: Told in a sentence when another process is writing.
    """
    with locked(repository, on_wait=on_wait):
        documents = packaged_documents(repository)
        if not wanted.kserve:
            document, wanted = _as_before(repository, document, documents, wanted)
        image = wanted.image or _image_before(repository / "Dockerfile")
        files = {"Dockerfile": dockerfile(documents, image=image), "compose.yaml": compose(documents, image=image)}
        if wanted.kserve and image is not None and wanted.storage_uri is not None:
            files["clusterservingruntime.yaml"] = serving_runtime(documents, image=image)
            files["inferenceservice.yaml"] = inference_service(
                document, image=image, storage_uri=wanted.storage_uri, canary=wanted.canary, documents=documents
            )
        written = Written()
        for name, text in files.items():
            (written.files if write_marked(repository / name, text) else written.left).append(name)
        return written


def _as_before(
    repository: Path, document: PackageDocument, documents: Sequence[PackageDocument], wanted: Surroundings
) -> tuple[PackageDocument, Surroundings]:
    """What earlier manifests of ours say: they speak of versions, and must not go on speaking of old ones."""
    path = repository / "inferenceservice.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    uri = re.search(r'^ *storageUri: "([^"]+)"$', text, re.MULTILINE)
    name = re.search(r'^  name: "([^"]+)"$', text, re.MULTILINE)
    canary = re.search(r"^ *canaryTrafficPercent: (\d+)$", text, re.MULTILINE)
    named = [one for one in documents if name is not None and service_name(one.model) == name.group(1)]
    if MARK not in text.partition("\n")[0] or uri is None or not named:
        return document, wanted
    percent = int(canary.group(1)) if canary else None
    return named[0], replace(wanted, kserve=True, storage_uri=uri.group(1), canary=percent)


def _image_before(path: Path) -> str | None:
    """The image that an earlier Dockerfile of ours names: an option that is not given again stays."""
    if not path.is_file():
        return None
    found = re.search(r"^ARG TRITON_IMAGE=(\S+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found.group(1) if found and _IMAGE.fullmatch(found.group(1)) else None


def write_marked(path: Path, text: str) -> bool:
    """Write a file of ours; leave one alone that somebody made his own. Returns whether it was written."""
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        return False
    write_atomic(path, text)
    return True


def requirements(documents: Sequence[PackageDocument]) -> list[PlanRequirement]:
    """What the served versions' plans need."""
    return [plan for document in documents for plan in document.current.plans]


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
    """Name of the cluster's runtime for an image, "nm2trt-triton-26-07-py3-1f0c9a2b".

    The end is of the whole image: a tag means one image in each registry, and a runtime is the whole cluster's.
    """
    tag = re.sub(r"[^a-z0-9]+", "-", image.rsplit("/", 1)[-1].partition(":")[2].lower()).strip("-") or "latest"
    digest = hashlib.sha256(image.encode()).hexdigest()[:8]
    return f"{f'nm2trt-triton-{tag}'[: 63 - 9].rstrip('-')}-{digest}"


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
            f"--metrics-port={_METRICS_PORT}",
            "--disable-auto-complete-config",
        ],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}},
    }
    spec = {
        # KServe copies these to the pods, where its own scraping and Prometheus's usual discovery look for them.
        "annotations": {
            "prometheus.kserve.io/path": "/metrics",
            "prometheus.kserve.io/port": str(_METRICS_PORT),
            "prometheus.io/scrape": "true",
            "prometheus.io/path": "/metrics",
            "prometheus.io/port": str(_METRICS_PORT),
        },
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


def service_name(model: str) -> str:
    """A model's name as Kubernetes writes names."""
    return model.lower().replace("_", "-").replace(".", "-")


def check_manifest_values(model: str, *, storage_uri: str, canary: int | None) -> str:
    """Check what the user gives for an InferenceService; returns its name, a Kubernetes name made of the model's.

    Raises:
        ConfigError: The model's name makes none, or a value is out of range.
    """
    name = service_name(model)
    if not _SERVICE.fullmatch(name):
        raise ConfigError(
            f"{model!r} makes no Kubernetes name as KServe wants it ({name!r})",
            where="--name",
            hint="begin with a letter and end with a letter or digit",
        )
    if len(name) > _LONGEST_SERVICE:
        raise ConfigError(
            f"{model!r} is {len(name)} long, and a KServe service's name at most {_LONGEST_SERVICE}",
            where="--name",
            hint="choose a shorter --name",
        )
    if not _URI.fullmatch(storage_uri):
        raise ConfigError(
            f"{storage_uri!r} is no URI",
            where="--storage-uri",
            hint="write pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://...",
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
    newest = document.current
    metadata = {
        "name": name,
        "annotations": {
            "serving.kserve.io/enable-prometheus-scraping": "true",
            "nm2trt/build-sha256": newest.build_sha256,
            "nm2trt/variant": newest.variant,
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
