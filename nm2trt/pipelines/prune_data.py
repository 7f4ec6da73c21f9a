"""Pruning with data, whatever runs the network: settings, samples, and the search for what `--max-drop` asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

from nm2trt.artifacts.calibration import Agreement, Sensitivity
from nm2trt.errors import ConfigError, MachineError
from nm2trt.extras import EXTRAS, install_line, missing_modules
from nm2trt.prune.prune_schema import DataRecord, LayerError, NormRecord

if TYPE_CHECKING:
    from nm2trt.calibration.feeds import Batch, Source
    from nm2trt.calibration.graph import Port
    from nm2trt.prune.calibrated.solve import PrunedColumns
    from nm2trt.prune.selection import Decision

StepProgress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, of how many); 0 of 0 where that is not known."""
Method = Literal["obs", "wanda", "magnitude"]

_SENSITIVITY_SAMPLES = 64
_NEEDED = ("onnxruntime", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Samples, and how they choose and change weights.

    Raises:
        ConfigError: Values are not allowed; all of them are named.
    """

    data: str
    """As `nm2trt calibrate --data` takes it."""
    method: Method = "obs"
    """obs: optimal brain surgeon in SparseGPT's form, what stays makes up for what goes; wanda: magnitude times the
    norm of its input; magnitude: as without data, but measured."""
    damping: float = 0.01
    """obs: share of the Hessian's mean diagonal that is added to its diagonal."""
    recalibrate_bn: bool = False
    """Take mean and variance of BatchNormalization nodes behind pruned layers anew."""
    max_drop: float | None = None
    """Keep the most sensitive layers dense until the score drops by at most so many points; without labels, until the
    relative error of the outputs is at most so many per cent."""
    sensitivity: bool = False
    """Prune layer by layer and rank them."""
    samples: int = 512
    """Most samples to prune with."""
    held_out: int = 10_000
    """Most other samples to compare the pruned with the dense network on."""
    batch_size: int | None = None
    """None: by the size of the activations."""
    preprocess: str | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        wrong = []
        if self.method not in get_args(Method):
            wrong.append(f"unknown --method {self.method!r}, choose {', '.join(get_args(Method))}")
        if not 0 <= self.damping <= 1:
            wrong.append(f"--damping {self.damping:g} is not between 0 and 1")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            wrong.append(f"--max-drop {self.max_drop:g} is not between 0 and 100")
        counts = (("--calibration-samples", self.samples), ("--held-out", self.held_out))
        for option, value in (*counts, ("--batch-size", 1 if self.batch_size is None else self.batch_size)):
            if value < 1:
                wrong.append(f"{option} {value} is less than 1")
        if wrong:
            raise ConfigError("; ".join(wrong))


def check_machine() -> None:
    """Refuse early where ONNX Runtime or torch, which hands out the samples, is missing.

    Raises:
        MachineError: One is.
    """
    missing = [module for module in missing_modules("calibrate") if module in _NEEDED and module in EXTRAS["calibrate"]]
    if missing:
        raise MachineError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            where="prune with data",
            hint=install_line("calibrate"),
        )


class Attempt(Protocol):
    """A network that was pruned but for some layers."""

    @property
    def agreement(self) -> Agreement:
        """With the dense network, on held-out samples."""


AnyAttempt = TypeVar("AnyAttempt", bound=Attempt)


def find_fewest_dense(
    first: AnyAttempt,
    config: DataConfig,
    rank: Callable[[], list[Sensitivity]],
    attempt: Callable[[tuple[str, ...]], AnyAttempt],
    layer_count: int,
) -> tuple[AnyAttempt, list[Sensitivity]]:
    """With `max_drop`, keep the fewest of the most sensitive layers dense that bring the drop within it.

    Args:
        first: All layers pruned.
        config: `max_drop`, and whether layers are ranked anyway.
        rank: Gives the layers, the most sensitive first.
        attempt: Prunes anew but for some layers.
        layer_count: How many can be pruned; one always is.

    Returns:
        The network, which misses `max_drop` where none is within it; and the ranking, empty where nobody needed it.
    """
    limit = config.max_drop
    too_much = limit is not None and not drop_of(first.agreement) <= limit
    ranking = rank() if config.sensitivity or too_much else []
    if limit is None or not too_much or layer_count < 2:
        return first, ranking
    from nm2trt.calibration.sensitivity import find_fewest

    order = [entry.layer for entry in ranking]
    drops: dict[int, float] = {}
    best: dict[int, AnyAttempt] = {}

    def good(count: int) -> bool:
        if count not in drops:
            found = attempt(tuple(order[:count]))
            drops[count] = drop_of(found.agreement)
            # Weights of one network at a time: the best so far, or the last.
            if drops[count] <= limit or not any(drops[known] <= limit for known in best):
                best.clear()
                best[count] = found
        return drops[count] <= limit

    return best[find_fewest(len(order) - 1, good)], ranking


def drop_of(agreement: Agreement) -> float:
    """Points of the score; without labels the relative error in per cent."""
    points = agreement.drop_points
    return 100 * relative_error(agreement) if points is None else points


def make_record(
    config: DataConfig,
    *,
    data: str,
    samples: int,
    norms: NormRecord | None,
    agreement: Agreement,
    kept_dense: tuple[str, ...],
    sensitivity: Sequence[Sensitivity],
    seconds: float,
) -> DataRecord:
    """What the document says of the samples and the whole network; see `DataRecord`.

    Args:
        config: The method and its settings.
        data: What the samples are, in words.
        samples: How many it pruned with.
        norms: Batch norms whose statistics were taken again.
        agreement: Of the pruned network with the dense one, on held-out samples.
        kept_dense: Layers that `max_drop` kept dense.
        sensitivity: What each layer costs when it alone is pruned.
        seconds: How long all of it took.
    """
    return DataRecord(
        method=config.method,
        damping=config.damping,
        data=data,
        samples=samples,
        norms=norms,
        agreement=agreement,
        relative_error=relative_error(agreement),
        max_drop=config.max_drop,
        kept_dense=kept_dense,
        sensitivity=tuple(sensitivity),
        seconds=seconds,
    )


def relative_error(agreement: Agreement) -> float:
    """Norm of the differences over the norm of the reference's output, of the worst output."""
    return float(10 ** (-agreement.sqnr_db / 20))


def find_problems(config: DataConfig, agreement: Agreement) -> list[str]:
    """What makes a pruned network fail: outputs that are no numbers, a drop above `max_drop`."""
    problems = [one.problem for one in agreement.outputs if one.problem]
    drop = drop_of(agreement)
    if config.max_drop is not None and not drop <= config.max_drop:
        scored = agreement.drop_points is not None
        what = f"the score drops by {drop:.2f} points" if scored else f"the outputs differ by {drop:.2f} %"
        problems.append(f"{what}, more than --max-drop {config.max_drop:g}")
    return problems


def find_ranking_samples(source: Source, size: int) -> Iterator[Batch]:
    """Give calibration samples for the ranking, `size` at a time, so that held-out ones stay unseen."""
    done = 0
    for batch in source.calibration(min(size, _SENSITIVITY_SAMPLES)):
        if done >= _SENSITIVITY_SAMPLES:
            return
        done += batch.count
        yield batch


def open_samples(config: DataConfig, ports: Sequence[Port]) -> Source:
    """Open what `data` names; errors as `nm2trt.calibration.sources.open_data`."""
    from nm2trt.calibration.sources import open_data

    return open_data(
        config.data,
        ports,
        samples=config.samples,
        held_out=config.held_out,
        preprocess=config.preprocess,
        data_dir=config.data_dir,
    )


def keep_dense(decision: Decision, config: DataConfig) -> Decision:
    """The decision on a layer that `max_drop` leaves dense."""
    return replace(decision, pattern=None, reason=f"kept dense by --max-drop {config.max_drop:g}")


def add_layer_errors(solved: Sequence[PrunedColumns]) -> LayerError:
    """What pruning one tensor costs; the slices of a packed one are added up."""
    energy = sum(one.dense_energy for one in solved)

    def share(error: float) -> float:
        return float(error / energy) if energy > 0 else 0.0

    return LayerError(
        error=share(sum(one.error for one in solved)),
        magnitude_error=share(sum(one.magnitude_error for one in solved)),
        dense_energy=float(energy),
        damping=max(one.damping for one in solved),
        damped=any(one.damped for one in solved),
        dead_columns=sum(one.dead_columns for one in solved),
        magnitude_rows=sum(one.magnitude_rows for one in solved),
    )
