"""Dense against 2:4 in PyTorch: variants are made, checked against each other, timed, and looked into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from nm2trt.artifacts import ReportDocument, RunnerRecord
from nm2trt.artifacts.report import ExecutionMode, VariantName
from nm2trt.errors import EXIT_BAD_VERDICT, InputError, MachineError, Nm2trtError
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.device_state import driver_version, gpu_state
from nm2trt.profile.measure import LONGEST_SHARE, measure
from nm2trt.profile.statistics import MIN_ROUNDS
from nm2trt.profile.torch_sparse.findings import BatchFound, Found, Variants
from nm2trt.profile.torch_sparse.network import (
    DTYPES,
    Feeds,
    TorchNetwork,
    check_same_modules,
    draw_feeds,
    filled,
    placed,
    tensors_of,
)
from nm2trt.profile.torch_sparse.report_builder import report_document
from nm2trt.profile.torch_sparse.runner import TorchLayerProfiler, TorchSparseRunner, quiet_call
from nm2trt.torch_sparse.backends import BackendName, BackendState, describe_state, detect_backends
from nm2trt.torch_sparse.conversion import (
    ProductLayer,
    check_weights,
    find_products,
    pack_products,
    packer,
    rewrite,
)
from nm2trt.torch_sparse.kernel_names import is_sparse_kernel, kernels_of
from nm2trt.torch_sparse.products import relative_error

Progress = Callable[[str, float], None]

DEVICE = "cuda"
LARGEST_ERROR = 0.05
"""Outputs of the packed network may differ from the dense form by this share of the largest output, in 16 bits."""
_LAYER_CALLS = 12
_MARGIN = 1.3
_FILLED_NOTE = (
    "No dense-trained network was given: the sparse network's zeros were filled with draws from the same layer's "
    "non-zeros. Good for timing only; its outputs mean nothing."
)


class WrongOutputsError(Nm2trtError):
    """The packed network does not compute what its dense form does."""

    exit_code = EXIT_BAD_VERDICT


def profile_torch_sparse(
    network: TorchNetwork,
    config: ProfileConfig,
    *,
    dense: TorchNetwork | None = None,
    progress: Progress = lambda _what, _share: None,
) -> ReportDocument:
    """Time a network in PyTorch, dense against torch's 2:4 kernels.

    Args:
        network: With the sparse weights.
        config: Batch sizes, modes, precision, duration, seed.
        dense: The same architecture with dense-trained weights; None: the zeros of the sparse one are filled.
        progress: Called with (what is measured, share of it done).

    Raises:
        InputError: No product can be packed, the two networks differ, or no mode can run them.
        MachineError: No GPU, or none of torch's 2:4 backends runs on it.
        WrongOutputsError: The packed network computes something else than its dense form.
    """
    backend = choose_backend(detect_backends())
    variants = make_variants(network, config, backend, dense=dense)
    found = measure_variants(variants, network, config, progress)
    note = "" if dense is not None else _FILLED_NOTE
    return report_document(found, variants, network, config, dense=dense, dense_note=note)


def choose_backend(states: tuple[BackendState, ...]) -> BackendName:
    """Take cuSPARSELt where it runs, else CUTLASS.

    Raises:
        MachineError: Neither does.
    """
    available = [state.name for state in states if state.available]
    if not available:
        raise MachineError(
            f"--backend torch-sparse: {'; '.join(map(describe_state, states))}",
            hint="run on a machine with an NVIDIA GPU of compute capability 8.0 or newer and torch for CUDA",
        )
    return available[0]


def make_variants(
    network: TorchNetwork, config: ProfileConfig, backend: BackendName, *, dense: TorchNetwork | None
) -> Variants:
    """Place, rewrite and pack a network.

    Raises:
        InputError: No product can be packed, or the dense network is of another architecture.
    """
    dtype = DTYPES[config.precision]
    sparse = placed(network.module, dtype=dtype, device=DEVICE)
    feeds = draw_feeds(network.inputs, 1, dtype=dtype, device=DEVICE, seed=config.seed)
    layers = tuple(check_weights(find_products(sparse, feeds.run), sparse, backend))
    eligible = [layer for layer in layers if layer.reason is None]
    if not eligible:
        reasons = "; ".join(
            dict.fromkeys(f"{layer.name}: {layer.reason.words()}" for layer in layers[:3] if layer.reason)
        )
        raise InputError(
            f"none of {len(layers)} products can run a 2:4 kernel of torch ({reasons or 'there are none'})",
            where=network.record.name,
            hint="train it with --pattern 2:4 or prune it first (nm2trt prune)",
        )
    if dense is not None:
        check_same_modules(dense.module, network.module, where=f"{dense.record.name} and {network.record.name}")
        baseline = placed(dense.module, dtype=dtype, device=DEVICE)
    else:
        baseline = filled(sparse, [layer.name for layer in layers], seed=config.seed)
    control = rewrite(sparse, layers)
    return Variants(
        dense=baseline,
        control=control,
        sparse=pack_products(control, layers, packer(backend)),
        layers=layers,
        backend=backend,
    )


def measure_variants(variants: Variants, network: TorchNetwork, config: ProfileConfig, progress: Progress) -> Found:
    """Time all modes and batch sizes, then the products one by one."""
    record = runner_record(variants.backend)
    found = Found(record=record)
    found.relative_error = compare_outputs(variants, network, config)
    for mode in config.modes:
        runners = _runners(variants, network, config, mode, record)
        for batch in config.batches:
            try:
                for runner in runners.values():
                    runner.prepare(batch)
            except InputError as error:
                found.failed.append(str(error))
                continue
            watch = partial(progress, f"{mode}, batch {batch}")
            found.batches.append(_measure_batch(runners, batch, mode, config, watch))
        for runner in runners.values():
            runner.close()
        torch.cuda.empty_cache()
    if not found.batches:
        raise InputError(found.failed[0], hint="try another --mode or --batch")
    if config.layers:
        _look_into_layers(found, variants, network, config, progress)
    return found


def _runners(
    variants: Variants, network: TorchNetwork, config: ProfileConfig, mode: ExecutionMode, record: RunnerRecord
) -> dict[VariantName, TorchSparseRunner]:
    modules: dict[VariantName, nn.Module] = {
        "dense": variants.dense,
        "control": variants.control,
        "sparse": variants.sparse,
        "sparse-repeat": variants.sparse,
    }
    return {
        name: TorchSparseRunner(
            module,
            network.inputs,
            mode=mode,
            dtype=DTYPES[config.precision],
            seed=config.seed,
            record=record,
            fused_attention=name == "dense",
        )
        for name, module in modules.items()
    }


def _measure_batch(
    runners: Mapping[VariantName, TorchSparseRunner],
    batch: int,
    mode: ExecutionMode,
    config: ProfileConfig,
    progress: Callable[[float], None],
) -> BatchFound:
    before = gpu_state()
    measured = measure(runners, duration_s=_duration_s(runners, config), seed=config.seed, progress=progress)
    after = gpu_state()
    # Before the profiler runs, which slows the launches down.
    enqueue_ms = {name: runner.enqueue_ms() for name, runner in runners.items()}
    kernels = kernels_of(runners["sparse"].run_once)
    return BatchFound(
        batch=batch,
        mode=mode,
        measured=measured,
        enqueue_ms=enqueue_ms,
        sparse_kernels=sum(is_sparse_kernel(one.name) for one in kernels),
        before=before,
        after=after,
    )


def _duration_s(runners: Mapping[VariantName, TorchSparseRunner], config: ProfileConfig) -> float:
    """The time that was asked for, or what the fewest rounds need: modes differ too much for one figure."""
    round_ms = sum(min(runner.run_once() for _ in range(3)) for runner in runners.values())
    # Each variant of a round makes an untimed call and at least one that counts.
    return max(config.duration_s, _MARGIN * 2 * round_ms / 1000 * MIN_ROUNDS / LONGEST_SHARE)


def compare_outputs(variants: Variants, network: TorchNetwork, config: ProfileConfig) -> float:
    """Hold the packed network's outputs against the dense form of the same weights.

    Returns:
        The largest difference over the largest output.

    Raises:
        WrongOutputsError: It is larger than `LARGEST_ERROR`.
    """
    feeds = draw_feeds(
        network.inputs, config.batches[0], dtype=DTYPES[config.precision], device=DEVICE, seed=config.seed
    )
    with quiet_call():
        expected, outputs = (tensors_of(feeds.run(module)) for module in (variants.control, variants.sparse))
        if not any(one.any() for one in expected):
            # A classifier of zeros, as some networks start with, hides every difference.
            expected, outputs = (
                [_last_product(module, variants.layers, feeds)] for module in (variants.control, variants.sparse)
            )
    worst = max((relative_error(one, other) for one, other in zip(outputs, expected, strict=True)), default=0.0)
    if worst > LARGEST_ERROR:
        raise WrongOutputsError(
            f"with 2:4 kernels ({variants.backend}) the outputs differ from the dense form of the same weights by "
            f"{worst:.3g} of the largest output",
            where=network.record.name,
            hint="report it to PyTorch; the benchmark of single products (nm2trt benchmark-gpu) may name the sizes",
        )
    return worst


def _last_product(module: nn.Module, layers: Sequence[ProductLayer], feeds: Feeds) -> torch.Tensor:
    """Output of the last product that runs a 2:4 kernel."""
    seen: list[torch.Tensor] = []
    hooks = [
        module.get_submodule(layer.module).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for layer in layers
        if layer.reason is None
    ]
    try:
        feeds.run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1]


def _look_into_layers(
    found: Found, variants: Variants, network: TorchNetwork, config: ProfileConfig, progress: Progress
) -> None:
    batch = max(one.batch for one in found.batches)
    feeds = draw_feeds(network.inputs, batch, dtype=DTYPES[config.precision], device=DEVICE, seed=config.seed)
    with quiet_call():
        rows = {layer.name: layer for layer in find_products(variants.dense, feeds.run)}
    layers = tuple(
        layer if layer.name not in rows else replace(layer, m=rows[layer.name].m) for layer in variants.layers
    )
    profilers = {
        name: TorchLayerProfiler(module, layers, partial(feeds.run, module))
        for name, module in (("dense", variants.control), ("sparse", variants.sparse))
    }
    for call in range(_LAYER_CALLS):
        for profiler in profilers.values():
            profiler.run_once()
        progress("layers", (call + 1) / _LAYER_CALLS)
    found.tables = {"dense": profilers["dense"].finish(), "sparse": profilers["sparse"].finish()}
    found.sparse_shares = profilers["sparse"].sparse_shares()
    found.layers, found.layers_batch = layers, batch


def runner_record(backend: BackendName) -> RunnerRecord:
    """Say what runs the networks."""
    states = {state.name: state for state in detect_backends()}
    settings = {"2:4 backend": describe_state(states[backend])}
    if torch.version.cuda is not None:
        settings["CUDA"] = torch.version.cuda
    driver = driver_version()
    if driver is not None:
        settings["driver"] = driver
    note = (
        f"PyTorch's own 2:4 kernels ({describe_state(states[backend])}) in the sparse variants: matrix products and "
        "1x1 convolutions only. TensorRT's kernels are others, and were not measured."
    )
    if states[backend].slow_release:
        note += " This release of cuSPARSELt is slower on this GPU than 0.7.1 and 0.8.1 (NVIDIA; pytorch#177456)."
    return RunnerRecord(
        backend="torch-sparse",
        version=torch.__version__,
        provider=torch.cuda.get_device_name(),
        threads=None,
        settings=settings,
        clock="CUDA events around one call: eager and compiled with the host's launches, cuda-graph as one replay",
        sparse_kernels=True,
        note=note,
    )
