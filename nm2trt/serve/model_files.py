"""The files beside a model's versions, made of its package.json and the version that is current."""

from __future__ import annotations

import re
from pathlib import Path

from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError
from nm2trt.serve.config_pbtxt import ENGINE_CACHES, LABELS, ModelSpec, config_pbtxt, engine_cache, version_policy
from nm2trt.serve.config_reading import sign
from nm2trt.serve.repository import CONFIG
from nm2trt.serve.warmup import Warmup, warmup_data

_POLICY = re.compile(r"^version_policy\s*:?\s*\{\s*\w+\s*:?\s*\{[^{}]*\}\s*\}[ \t]*\n", re.MULTILINE)
_CACHE = re.compile(re.escape(ENGINE_CACHES) + r"[\w.-]+-[0-9a-f]{16}")
_LARGEST = re.compile(r"^\s*max_batch_size\s*:\s*(\d+)", re.MULTILINE)


def model_files(
    document: PackageDocument, folder: Path, *, current: Path, labels: str | None = None, edited: str | None = None
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Write the texts of config.pbtxt, package.json and labels.txt, and the warm-up data that config.pbtxt names.

    Args:
        document: All versions; those with files are complete.
        folder: The model's folder, for labels that lie there.
        current: Folder with the files of the version that a request without a version gets.
        labels: Given now; None: those that lie there stay.
        edited: A config.pbtxt that somebody changed and that is to stay; None: it is written anew.

    Returns:
        File name -> text, and warm-up file name -> bytes.

    Raises:
        ConfigError: The edited configuration cannot serve the version.
    """
    labeled = labels is not None or (folder / LABELS).is_file()
    files = {} if labels is None else {LABELS: labels}
    warmup: dict[str, bytes] = {}
    if edited is not None:
        files[CONFIG] = _kept(edited, document, folder)
    else:
        found = warmup_data(
            document.inputs,
            current / ONNX_FILE,
            batched=document.max_batch > 0,
            # A plan's profile bounds what is free, and package.json does not know it.
            any_size=document.platform != "tensorrt_plan",
        )
        warmup = dict(found.data)
        files[CONFIG] = sign(config_pbtxt(model_spec(document, labels=labeled, warmup=found)))
    return {**files, PackageDocument.FILE: document.to_json()}, warmup


def model_spec(document: PackageDocument, *, labels: bool, warmup: Warmup) -> ModelSpec:
    """Gather what config.pbtxt says."""
    newest = document.current
    own = 1 if document.max_batch > 0 else 0
    free = any(not isinstance(size, int) for port in document.inputs for size in port.shape[own:])
    return ModelSpec(
        name=document.model,
        platform=document.platform,
        inputs=document.inputs,
        outputs=document.outputs,
        batch=newest.batch or document.batch,
        max_batch=document.max_batch,
        queue_delay_us=document.queue_delay_us,
        precision=newest.precision,
        gpu=document.gpu,
        instances=document.instances,
        cuda_graphs=document.cuda_graphs and not free,
        versions=named_in_policy(document),
        labels=labels,
        plans_by_sm=newest.plan_files,
        engine_key=newest.network_sha256,
        warm_up=warmup.known,
        warmup_files=warmup.files,
        warmup_dims=warmup.dims,
    )


def named_in_policy(document: PackageDocument) -> tuple[int, ...]:
    """Versions that config.pbtxt names one by one; empty where "the latest" says the same."""
    served = [version.version for version in document.served]
    one_at_a_time = document.platform == "onnxruntime" and document.gpu
    latest = [version.version for version in document.versions][-2:]
    return tuple(served) if one_at_a_time or served != latest else ()


def _kept(config: str, document: PackageDocument, folder: Path) -> str:
    """An edited configuration, with the lines that depend on the version brought up to it."""
    where = folder / CONFIG
    way = "edit it, or drop the edits with --rewrite-config"
    found = _LARGEST.search(config)
    if found and int(found.group(1)) > document.max_batch:
        raise ConfigError(
            f"max_batch_size {found.group(1)} is more than {document.max_batch}, which the loaded versions take",
            where=where,
            hint=way,
        )
    missing = [file for file in document.current.plan_files.values() if f'"{file}"' not in config]
    if missing:
        raise ConfigError(f"does not name {', '.join(missing)} of the new version", where=where, hint=way)
    named = named_in_policy(document)
    if named or "specific" in config:
        if not _POLICY.search(config):
            raise ConfigError(f"has no version_policy that we could set to {list(named)}", where=where, hint=way)
        config = _POLICY.sub(lambda _: "\n".join(version_policy(named)[1:]) + "\n", config)
    if "trt_engine_cache_enable" in config:
        cache = engine_cache(document.model, document.current.network_sha256)
        config, changed = _CACHE.subn(cache, config)
        if not changed:
            raise ConfigError(
                f"has an engine cache of its own, where ONNX Runtime tells no weights apart; this version's is {cache}",
                where=where,
                hint=way,
            )
    return config
