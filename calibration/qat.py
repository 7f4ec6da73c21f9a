"""Quantization-aware fine-tuning: a network learns around INT8 rounding, and its masks hold while it does.

The layers of a torch module compute as the Q/DQ graph will: weights rounded per output channel, activations per tensor,
zero point 0, gradients passed straight through (torch's own fake_quantize operators). Nothing is renamed or wrapped:
parameters stay the same objects under the same names, so an optimizer, a checkpoint and a sparsifier that projects
weights around the optimizer's step see an ordinary module. A zero rounds to a zero, so a mask that is held in the
weights holds in INT8, too.

Ranges of activations come from samples before fine-tuning and stay fixed, as NVIDIA advises for TensorRT. Why not a
library: torchao's quantization-aware training replaces nn.Linear alone (0.18), torch.ao's modules are deprecated, and
Model Optimizer's masks get lost on the way (NVIDIA/Model-Optimizer issue 122).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nm2trt.artifacts.calibration import CalibrationDocument
from nm2trt.calibration.ranges import LEVELS, Method
from nm2trt.calibration.run import calibrate
from nm2trt.calibration.settings import Settings
from nm2trt.calibration.statistics import TensorStatistics
from nm2trt.errors import ConfigError, InputError

QUANTIZED_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class QuantAware:
    """A module whose layers compute in simulated INT8.

    Args:
        module: Trained, in float32. It is changed in place until `remove`.
        batches: Inputs as the module takes them, each a tensor or a tuple of tensors; they choose the ranges.
        method: How ranges are chosen, as `nm2trt calibrate --method`.
        exclude: Names of layers to leave in floating point.

    Raises:
        ConfigError: The method or a name is unknown.
        InputError: No batch was given, or an activation is NaN or constant.

    Example:
        aware = QuantAware(model, calibration_batches)
        sparsifier = sparsify(model, optimizer, pattern="2:4", method="ste")
        ...  # fine-tune as ever, at a tenth of the learning rate
        aware.remove()  # a plain float module again; export it, then:
        qdq_from_quant_aware(aware, "model.onnx", "int8.onnx", Settings(data="fashion-mnist"))
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Iterable[Any],
        *,
        method: str = "entropy",
        exclude: Iterable[str] = (),
    ) -> None:
        self.module = module
        self._layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, QUANTIZED_MODULES)}
        if unknown := sorted(set(exclude) - self._layers.keys()):
            raise ConfigError(f"{unknown[0]!r} is no layer", where="exclude", hint=f"choose {', '.join(self._layers)}")
        for name in exclude:
            del self._layers[name]
        statistics = self._observed(batches)
        chosen = Method.parse(method)
        self.ranges: dict[str, float] = {}
        """Layer name -> largest magnitude of its input that INT8 reaches."""
        for name, stats in statistics.items():
            if stats.constant:
                raise InputError(f"the input of {name!r} is constant, so it has no range", where="batches")
            if stats.values:
                self.ranges[name] = chosen.range_of(stats.counts, stats.span / len(stats.counts), stats.magnitude)
        self.left_out = sorted(self._layers.keys() - self.ranges.keys())
        """Layers that the module does not call, such as those inside nn.MultiheadAttention; they stay as they are."""
        for name, reach in self.ranges.items():
            layer: Any = self._layers[name]
            # An attribute of the instance goes before the class's method; deleting it brings that back.
            layer.forward = partial(_forward, layer, reach)

    def remove(self) -> None:
        """Let the module compute in floating point again; its weights are those that were learned."""
        for name in self.ranges:
            layer: Any = self._layers[name]
            if "forward" in vars(layer):
                del layer.forward

    def _observed(self, batches: Iterable[Any]) -> dict[str, TensorStatistics]:
        statistics = {name: TensorStatistics() for name in self._layers}
        handles = [
            layer.register_forward_pre_hook(partial(_observe, name, statistics[name]))
            for name, layer in self._layers.items()
        ]
        training, count = self.module.training, 0
        self.module.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    self.module(*(batch if isinstance(batch, tuple | list) else (batch,)))
                    count += 1
        finally:
            self.module.train(training)
            for handle in handles:
                handle.remove()
        if not count:
            raise InputError("there is no batch to choose ranges from", where="batches")
        return statistics


def qdq_from_quant_aware(
    aware: QuantAware, model: Path | str, output: Path | str, settings: Settings, **options: Any
) -> CalibrationDocument:
    """Turn the exported float network into Q/DQ with the ranges that it was fine-tuned with.

    Tensors that no layer reads (skips, the input of global pooling) get theirs from the samples of `settings`.

    Args:
        aware: Whose module was exported. An ONNX node is matched by its layer's name, as `nm2trt export` writes it.
        model: The exported ONNX file.
        output: `.onnx` to write.
        settings: As for `calibrate`.
        options: As for `calibrate`.

    Raises:
        InputError: A layer of the module is not in the graph.
    """
    return calibrate(Path(model), Path(output), settings, layer_ranges=aware.ranges, **options)


def fake_quantized_weight(weight: torch.Tensor) -> torch.Tensor:
    """Round a weight [out, ...] as Q and DQ do, one scale per output channel; differentiable."""
    with torch.no_grad():
        largest = weight.detach().flatten(1).abs().amax(dim=1)
        scale = torch.where(largest > 0, largest / LEVELS, torch.ones_like(largest)).float()
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -LEVELS, LEVELS)


def fake_quantized(x: torch.Tensor, reach: float) -> torch.Tensor:
    """Round an activation as Q and DQ do, clipped to `reach`; differentiable."""
    return torch.fake_quantize_per_tensor_affine(x, reach / LEVELS, 0, -LEVELS - 1, LEVELS)


def _forward(layer: nn.Module, reach: float, x: torch.Tensor) -> torch.Tensor:
    x = fake_quantized(x, reach)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, fake_quantized_weight(layer.weight), layer.bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    convolve: Callable[..., torch.Tensor] = layer._conv_forward  # noqa: SLF001 -- torch's own hook for subclasses
    return convolve(x, fake_quantized_weight(layer.weight), layer.bias)


def _observe(name: str, statistics: TensorStatistics, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    if not statistics.add(inputs[0].detach().float().cpu().numpy()):
        raise InputError(f"the input of {name!r} is NaN or infinite", where="batches")
