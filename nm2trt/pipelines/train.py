"""Train a network into a run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nm2trt.artifacts import RunDocument
from nm2trt.errors import Nm2trtError
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.training.config import FILE as CONFIG
from nm2trt.training.config import TrainConfig, load_config, resumed_config
from nm2trt.training.interruption import InterruptedRunError
from nm2trt.training.processes import is_first_process, process_group_ends
from nm2trt.training.run import train
from nm2trt.training.state import FILE as STATE

__all__ = [
    "InterruptedRunError",
    "RunDocument",
    "RunStart",
    "TrainConfig",
    "is_first_process",
    "load_config",
    "process_group_ends",
    "settle_start",
    "train_network",
]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with steps done, of how many, and words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """A run that is to be started or gone on with."""

    config: TrainConfig
    resume: bool


def settle_start(
    output: Path,
    options: Mapping[str, Any],
    *,
    config: Path | None = None,
    resume: bool = False,
    auto_resume: bool = False,
    trust: bool = False,
) -> RunStart:
    """Settle whether a run is started or resumed, and with which settings.

    Args:
        output: Its folder.
        options: Fields of `TrainConfig`, which win over a file and a recipe.
        config: TOML file of settings.
        resume: Go on from the state in `output`.
        auto_resume: Go on where `output` holds a run, else start one.
        trust: Import the code that a resumed `output` names although this machine did not write it.

    Raises:
        ConfigError: Settings are wrong, all of them in one line, or differ from those that the run was started with.
        InputError: A file is missing or cannot be read; there is no run to resume; it names foreign code.
    """
    resume = resume or (auto_resume and (output / CONFIG).is_file())
    if not resume:
        return RunStart(config=load_config(config, options), resume=False)
    # With auto_resume the options are those that the run was started with.
    again = load_config(config, options).model_dump() if auto_resume else options
    return RunStart(config=resumed_config(output, again, trust=trust), resume=True)


def train_network(
    config: TrainConfig,
    output: Path | str,
    *,
    force: bool = False,
    resume: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> RunDocument:
    """Train and leave a run folder: checkpoint, configuration, metrics, SAD, curves, run.json.

    Under torchrun or accelerate launch every process calls this, inside of `process_group_ends()`.

    Args:
        config: The run.
        output: Folder to make.
        force: Replace a folder that nm2trt wrote.
        resume: Go on from the state in `output`, to the same end as if the run had never stopped.
        trust: Import the code that a teacher's run.json names although this machine did not write it.
        progress: Called after steps and epochs.

    Returns:
        What was written as run.json.

    Raises:
        MachineError: A tracker is not installed, or cannot start.
        ConfigError: The folder exists; no layer can take the pattern; the state is of another run.
        InputError: The data or the state cannot be used.
        DivergedError: The loss is no number; the last state is kept.
        InterruptedRunError: SIGINT or SIGTERM came; what was saved last is whole.

    Example:
        >>> from nm2trt.training.config import TrainConfig
        >>> run = train_network(TrainConfig(model="mlp", epochs=1, warmup_epochs=0, device="cpu"), "run")
        >>> run.method, run.pattern, [layer.name for layer in run.layers if layer.pattern]
        ('sr-ste', '2:4', ['hidden1.weight', 'hidden2.weight'])
    """
    output = Path(output)
    logger.debug("train %s on %s, %s", config.model, config.data, config.method)
    try:
        return train(config, output, force=force, resume=resume, trust=trust, progress=progress or ignore_progress)
    except KeyboardInterrupt:
        raise _interrupted(output) from None


def _interrupted(output: Path) -> Nm2trtError:
    """Say what an interruption outside of the steps leaves."""
    if (output / STATE).is_file():
        return InterruptedRunError(
            "interrupted; its last saved state is whole", where=output, hint="go on with --resume"
        )
    return InterruptedRunError("interrupted before anything was saved; nothing was left", where=output)
