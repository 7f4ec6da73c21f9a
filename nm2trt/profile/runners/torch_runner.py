"""Runs the network of a run folder in PyTorch, eager or compiled: a reference beside the engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nm2trt.artifacts import RunDocument, RunnerRecord, sha256_of
from nm2trt.artifacts.code_trust import check_code
from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.models import build_model, load_strict
from nm2trt.ort.random_inputs import draw_tensor
from nm2trt.profile.runners.runner import LayerProfiler
from nm2trt.threads import threads_to_measure

_CHECKPOINT = "checkpoint.safetensors"
_NOTE = (
    "PyTorch runs the sparse weights as dense ones: it has 2:4 kernels only for tensors that were converted to them."
)


def load_module(folder: Path, *, trust: bool = False) -> tuple[nn.Module, tuple[int, ...]]:
    """Build the network of a run folder with its weights, in evaluation mode; and the shape of one sample.

    Args:
        folder: Of `nm2trt train`.
        trust: Import code that run.json names although this machine did not write it.

    Raises:
        InputError: The folder is no finished run, its checkpoint was changed, or run.json, which this machine did not
            write, names code.
    """
    from safetensors.torch import load_file

    run = RunDocument.read(folder, hint="name a folder that `nm2trt train` wrote to the end")
    check_code(folder / RunDocument.FILE, {"model": run.model.name}, trust=trust)
    path = folder / _CHECKPOINT
    record = run.files.get(_CHECKPOINT)
    if record is None or not path.is_file() or sha256_of(path) != record.sha256:
        raise InputError("is not the checkpoint that run.json names", where=path, hint="train again")
    with torch.random.fork_rng(devices=[]):
        module = build_model(run.model.name, run.model.input_shape, run.model.classes)
    load_strict(module, load_file(path), path, hint="train again with `nm2trt train`")
    return module.float().eval(), tuple(run.model.input_shape)


class TorchRunner:
    """One module on the GPU if there is one, else on the CPU.

    Args:
        module: In evaluation mode.
        input_shape: One sample, without the batch.
        compiled: Run it through `torch.compile`.
        seed: Of the input values.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...], *, compiled: bool, seed: int = 0) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._module = module.to(self._device)
        self._call: Callable[[torch.Tensor], object] = torch.compile(self._module) if compiled else self._module
        self._compiled = compiled
        self._shape = input_shape
        self._seed = seed
        self._input: torch.Tensor | None = None

    @property
    def record(self) -> RunnerRecord:
        """Version, device and threads."""
        return RunnerRecord(
            backend="torch",
            version=torch.__version__,
            provider=torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            threads=torch.get_num_threads() if self._device == "cpu" else None,
            settings={"mode": "compiled" if self._compiled else "eager", "precision": "fp32"},
            clock="one call in inference mode, synchronized, host clock (time.perf_counter)",
            sparse_kernels=False,
            note=_NOTE,
        )

    def prepare(self, batch: int) -> None:
        """Draw inputs on the device; the first call compiles.

        Raises:
            InputError: The network cannot take this batch, or cannot be compiled.
        """
        if self._device == "cpu":
            torch.set_num_threads(threads_to_measure())
        generator = torch.Generator(self._device).manual_seed(self._seed)
        self._input = draw_tensor(generator, (batch, *self._shape), torch.float32)
        try:
            self.run_once()
        except Exception as error:  # noqa: BLE001 -- the network's own code, or the compiler
            what = "cannot be compiled" if self._compiled else "fails"
            raise InputError(f"{what} at batch {batch}: {one_line(error, whole=True)}", where="torch") from None

    def run_once(self) -> float:
        """Run once; milliseconds."""
        if self._input is None:
            raise RuntimeError("prepare() comes first")
        started = time.perf_counter()
        _blocking(self._call, self._input)
        return (time.perf_counter() - started) * 1000

    def run_with_transfers(self) -> float | None:
        """A reference needs no second clock."""
        return None

    def enqueue_ms(self) -> float | None:
        """Eager mode launches all along; there is no single launch to time."""
        return None

    def memory_bytes(self) -> int | None:
        """Not asked: other variants share the process."""
        return None

    def layer_profiler(self) -> LayerProfiler | None:
        """The reference is timed end to end only."""
        return None

    def streams(self, count: int) -> list[Callable[[], None]]:
        """The same module from several threads."""
        if self._input is None:
            raise RuntimeError("prepare() comes first")
        return [partial(_blocking, self._call, self._input) for _ in range(count)]

    def close(self) -> None:
        """Drop the inputs."""
        self._input = None


def _blocking(call: Callable[[torch.Tensor], object], inputs: torch.Tensor) -> None:
    with torch.inference_mode():
        call(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
