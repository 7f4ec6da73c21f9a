"""torch module -> onnx-ir graph in float32, as torch.export and torch.onnx write it."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from nm2trt.errors import ConfigError, InputError
from nm2trt.export.inputs import InputSpec
from nm2trt.library_errors import one_line

BATCH = "batch"
OUTPUT = "logits"
"""Name of the only output, where the network does not name it."""

# torch.export specializes a batch of 1, so the example has 2.
_EXAMPLE_BATCH = 2
_FREE_BATCH = "take the batch from its input's shape instead of a number in forward"
_PLAIN_NAME = re.compile(r"[A-Za-z_][\w.]*")
_SPECIALIZED = re.compile(r"specialized it to be a constant|was inferred to be a constant|Constraints violated")
_UNSUPPORTED = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'", re.DOTALL)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def float32_graph(module: nn.Module, inputs: Sequence[InputSpec], *, opset: int) -> ir.Model:
    """Export a network; nothing is folded but BatchNorm into convolutions, where torch.fx can trace them.

    Args:
        module: In float32 on the CPU and in evaluation mode; it is not changed.
        inputs: What it takes.
        opset: Of the graph.

    Returns:
        The graph as the exporter wrote it; the first dimension of every input is the named dimension "batch".

    Raises:
        ConfigError: The network takes no such inputs.
        InputError: torch cannot export it; the line names every operator without a translation.
    """
    check_inputs(module, inputs)
    plain = _folded(module, inputs)
    feeds = {one.name: _example(one) for one in inputs}
    outputs = _output_names(plain, inputs, feeds)
    dimension = torch.export.Dim(BATCH, min=1)
    shapes = {one.name: {0: dimension} for one in inputs}
    by_name = any(one.keyword for one in inputs)
    try:
        with silenced(), torch.no_grad(), _uncollected():
            program = torch.onnx.export(
                plain,
                () if by_name else tuple(feeds.values()),
                kwargs=feeds if by_name else None,
                dynamo=True,
                input_names=[one.name for one in inputs],
                output_names=outputs,
                dynamic_shapes=shapes if by_name else tuple(shapes.values()),
                opset_version=opset,
                verbose=False,
                optimize=False,
            )
    except Exception as error:
        raise _explained(error) from error
    if program is None:
        raise InputError("torch returned no ONNX program", where="export")
    model: ir.Model = program.model
    fixed = [str(value.name) for value in model.graph.inputs if value.shape is None or isinstance(value.shape[0], int)]
    if fixed:
        raise InputError(f"the network fixes the batch of {', '.join(fixed)}", where="export", hint=_FREE_BATCH)
    return model


def called(
    module: nn.Module, feeds: Mapping[str, torch.Tensor], inputs: Sequence[InputSpec]
) -> dict[str, torch.Tensor]:
    """Run a network and name its outputs as the graph does.

    Returns:
        Output name -> tensor, in order; None, numbers and caches among the outputs are left out, as ONNX leaves them.
    """
    by_name = any(one.keyword for one in inputs)
    given = [feeds[one.name] for one in inputs]
    output = module(**dict(zip((one.name for one in inputs), given, strict=True))) if by_name else module(*given)
    return dict(_named_outputs(output))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the collector: it walks the growing graph again and again for a tenth of the time, and frees little."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep the exporter's prints, warnings and log lines off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check_inputs(module: nn.Module, inputs: Sequence[InputSpec]) -> None:
    """Refuse names that a network's forward does not take, and leaving out what it needs.

    Raises:
        ConfigError: All such names at once.
    """
    if not any(one.keyword for one in inputs):
        return
    parameters = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    given = {one.name for one in inputs}
    needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
    wrong = [f"it takes no {name}" for name in sorted(given - parameters.keys())]
    wrong += [f"it needs {name}" for name in sorted(needed - given)]
    if wrong:
        raise ConfigError(
            f"{type(module).__name__}: {', '.join(wrong)}", where="--input", hint=f"it has {', '.join(parameters)}"
        )


def _example(one: InputSpec) -> torch.Tensor:
    shape = (_EXAMPLE_BATCH, *one.shape)
    dtype = getattr(torch, one.dtype)
    # Masks of zeros would make a row of attention undefined, and an index of 0 is always there.
    return torch.ones(shape, dtype=dtype) if "mask" in one.name.lower() else torch.zeros(shape, dtype=dtype)


def _folded(module: nn.Module, inputs: Sequence[InputSpec]) -> nn.Module:
    """Copy of the network with BatchNorm folded, which exports faster; the rest is left to the graph's own rules."""
    from torch.fx import symbolic_trace
    from torch.fx.experimental.optimization import fuse

    if not any(isinstance(part, _BATCH_NORMS) for part in module.modules()) or len(inputs) > 1:
        return module
    try:
        with silenced():
            traced = symbolic_trace(copy.deepcopy(module))
            targets = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
            # fuse() would fold the norms of a module that is called twice into one and the same weight.
            if max(targets.values(), default=0) > 1:
                return module
            folded: nn.Module = fuse(traced, inplace=True, no_trace=True).eval()
    except Exception:  # noqa: BLE001 -- tracing fails in many ways on data-dependent code; folding is only earlier here
        return module
    return folded


def _output_names(module: nn.Module, inputs: Sequence[InputSpec], feeds: Mapping[str, torch.Tensor]) -> list[str]:
    try:
        with silenced(), torch.no_grad():
            names = list(called(module, feeds, inputs))
    except Exception as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in feeds.items())
        raise InputError(
            f"the network cannot run on {shapes}: {one_line(error)}",
            where="export",
            hint="give its inputs with --input",
        ) from error
    if not names:
        raise InputError("the network returns no tensor", where="export")
    return names


def _named_outputs(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        yield OUTPUT, output
        return
    taken: set[str] = set()
    for trail, tensor in _leaves(output, ()):
        name = "_".join(trail)
        name = name if _PLAIN_NAME.fullmatch(name) else f"output_{name}"
        while name in taken:
            name += "_"
        taken.add(name)
        yield name, tensor


def _leaves(output: Any, trail: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        yield trail, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _leaves(value, (*trail, str(key)))
    elif isinstance(output, list | tuple):
        names = getattr(output, "_fields", range(len(output)))
        for key, value in zip(names, output, strict=True):
            yield from _leaves(value, (*trail, str(key)))


def _explained(error: BaseException) -> InputError:
    """One line from what the exporter raised, with every operator that it cannot translate."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    text = "\n".join(str(one) for one in chain)
    missing = dict.fromkeys(_UNSUPPORTED.findall(text))
    if missing:
        return InputError(
            f"ONNX has no operator for {', '.join(missing)}", where="export", hint="write these with other operators"
        )
    if _SPECIALIZED.search(text):
        return InputError(
            f"the network fixes its batch ({one_line(chain[-1])})",
            where="export",
            hint=_FREE_BATCH,
        )
    return InputError(f"torch cannot export the network: {one_line(chain[1] if chain[1:] else error)}", where="export")
