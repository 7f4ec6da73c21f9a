"""Live records in experiment trackers, through accelerate's `accelerate.tracking`, beside metrics.jsonl and sad.csv."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from nm2trt.artifacts import write_atomic
from nm2trt.errors import InputError, MachineError
from nm2trt.extras import OPTIONAL_EXTRAS, install_line, is_missing
from nm2trt.library_errors import one_line
from nm2trt.training.recorder import EpochScalars, step_scalars
from nm2trt.training.sad import Sad

TENSORBOARD, DVCLIVE = "tensorboard", "dvclive"
"""Trackers, and their folders inside the run's."""
FILE = "trackers.json"
"""Inside the run's folder: each tracker's own run, and how far it was told."""
_PROJECT = "nm2trt"
_MOST_AT_ONCE = 500
"""Scalars of one call; MLflow takes at most 1,000."""

_LOGGER = logging.getLogger(__name__)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse before any work is done.

    Raises:
        MachineError: The library of one is not installed, or accelerate is too old to know it.
    """
    for name in names:
        where = f"--log-with {name}"
        if is_missing(name):
            extra = install_line(name) if name in OPTIONAL_EXTRAS else f"pip install {name.replace('_', '-')}"
            raise MachineError(f"{name} is not installed", where=where, hint=extra)
        if name not in LOGGER_TYPE_TO_CLASS:
            raise MachineError("this accelerate does not know it", where=where, hint="pip install -U accelerate")


@dataclass(slots=True)
class _Progress:
    """What a tracker has of the run."""

    run_id: str | None = None
    """The tracker's own name of its run; None where it gives none that a run can be taken up by."""
    step: int = 0
    """The last step that it was told."""
    epoch_step: int = 0
    """The step of the last epoch's end that it was told."""


@dataclass(slots=True)
class _Tracked:
    name: str
    tracker: Any
    """accelerate's; None until it is made."""
    progress: _Progress
    failed: bool = False
    """It is told nothing more in this session."""


class Trackers:
    """Scalars of a run in accelerate's trackers; see `Recorder`.

    A tracker that has steps beyond the state that a run goes on from is not told them twice: TensorBoard drops them and
    takes the new ones, any other keeps them. One that fails is left out for the rest of the session, with a warning.

    Args:
        names: The trackers; their libraries are there.
        folder: Of the run.
        settings: The run's configuration, for trackers that are new to the run.
        after_step: The step that the run goes on from, 0 at the start.
        before: The last SAD record before that; None at the start.

    Raises:
        MachineError: A tracker cannot start, at the start of a run.
        InputError: `trackers.json` cannot be read.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, settings: Mapping[str, Any], after_step: int, before: Sad | None
    ) -> None:
        self._file = folder / FILE
        self._known, self._saved = _read(self._file), ""
        self._scalars = EpochScalars(before)
        self._tracked: list[_Tracked] = []
        for name in names:
            self._add(name, settings, after_step)
        self._save()

    def step(self, step: int, loss: float, rate: float) -> None:
        """See `Recorder`."""
        for one in self._tracked:
            if step > one.progress.step and self._tell(one, step, step_scalars(loss, rate)):
                one.progress.step = step
        self._save()

    def epoch(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> None:
        """See `Recorder`."""
        step, values = int(row["step"]), self._scalars.take(row, score_name, sad)
        for one in self._tracked:
            if step > one.progress.epoch_step and self._tell(one, step, values):
                one.progress.epoch_step = step
        self._save()

    def close(self) -> None:
        """See `Recorder`."""
        while self._tracked:
            one = self._tracked.pop()
            try:
                one.tracker.finish()
            except Exception as error:  # noqa: BLE001 -- as below
                _fail(one, "cannot finish its run", error)

    def _add(self, name: str, settings: Mapping[str, Any], after_step: int) -> None:
        known = self._known.get(name)
        one = _Tracked(name, None, known or _Progress())
        self._tracked.append(one)
        try:
            one.tracker = _make_tracker(name, self._file.parent, known, after_step)
            self._begin(one, None if known else settings, after_step)
        except Exception as error:  # noqa: BLE001 -- a tracker's library raises what it likes
            if after_step:
                _fail(one, "cannot start", error)
                return
            one.failed = True
            self.close()
            raise _not_started(name, error) from None

    def _begin(self, one: _Tracked, settings: Mapping[str, Any] | None, after_step: int) -> None:
        # Before accelerate 1.8 the constructor started it.
        getattr(one.tracker, "start", lambda: None)()
        if settings is not None:
            one.tracker.store_init_configuration(_plain_values(settings))
            one.progress.run_id = _run_id(one.name, one.tracker)
        self._known[one.name] = one.progress
        if one.name == TENSORBOARD:
            # It has dropped what came after that.
            one.progress = _Progress(step=after_step, epoch_step=after_step)

    def _tell(self, one: _Tracked, step: int, values: Mapping[str, float]) -> bool:
        if one.failed:
            return False
        items = list(values.items())
        try:
            for start in range(0, len(items), _MOST_AT_ONCE):
                one.tracker.log(dict(items[start : start + _MOST_AT_ONCE]), step=step)
        except Exception as error:  # noqa: BLE001 -- a tracker must not end a training
            _fail(one, f"failed at step {step}", error)
        return not one.failed

    def _save(self) -> None:
        content = json.dumps({name: asdict(known) for name, known in self._known.items()}) + "\n"
        if content != self._saved:
            write_atomic(self._file, content)
            self._saved = content


def _tensorboard(folder: Path, _known: _Progress | None, after_step: int) -> Any:
    # A killed run wrote beyond the state that this one goes on from.
    return LOGGER_TYPE_TO_CLASS[TENSORBOARD](TENSORBOARD, folder, purge_step=after_step + 1, flush_secs=10)


def _mlflow(folder: Path, known: _Progress | None, _after_step: int) -> Any:
    return LOGGER_TYPE_TO_CLASS["mlflow"](_PROJECT, run_id=known.run_id if known else None, run_name=_name(folder))


def _wandb(folder: Path, known: _Progress | None, _after_step: int) -> Any:
    # wandb lets arguments win over its own variables.
    names = {"name": os.environ.get("WANDB_NAME", _name(folder))}
    again = {"id": known.run_id, "resume": "allow"} if known else {}
    return LOGGER_TYPE_TO_CLASS["wandb"](os.environ.get("WANDB_PROJECT", _PROJECT), **names, **again)


def _dvclive(folder: Path, known: _Progress | None, _after_step: int) -> Any:
    # Its own default is a folder in the current one, which it empties at the start.
    return LOGGER_TYPE_TO_CLASS[DVCLIVE](_PROJECT, dir=str(folder / DVCLIVE), resume=known is not None)


def _aim(folder: Path, _known: _Progress | None, _after_step: int) -> Any:
    return LOGGER_TYPE_TO_CLASS["aim"](_name(folder), ".")


_TRACKERS: dict[str, Callable[[Path, _Progress | None, int], Any]] = {
    "aim": _aim,
    DVCLIVE: _dvclive,
    "mlflow": _mlflow,
    TENSORBOARD: _tensorboard,
    "wandb": _wandb,
}


def _make_tracker(name: str, folder: Path, known: _Progress | None, after_step: int) -> Any:
    make = _TRACKERS.get(name)
    return make(folder, known, after_step) if make else LOGGER_TYPE_TO_CLASS[name](_PROJECT)


def _name(folder: Path) -> str:
    return folder.resolve().name


def _run_id(name: str, tracker: Any) -> str | None:
    """What the tracker's own run is taken up by when this one is resumed."""
    if name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(tracker.tracker.id) if name == "wandb" else None


def _plain_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with lists and tables as text, which every tracker can hold."""
    return {
        key: value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in settings.items()
    }


def _read(file: Path) -> dict[str, _Progress]:
    if not file.is_file():
        return {}
    try:
        return {name: _Progress(**values) for name, values in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot be read: {one_line(error)}", where=file, hint="remove it, and the trackers begin runs of their own"
        ) from None


def _not_started(name: str, error: Exception) -> MachineError:
    return MachineError(
        f"{name} cannot start: {one_line(error)}",
        where=f"--log-with {name}",
        hint="set it up, or leave it out; metrics.jsonl and sad.csv hold all of it, too",
    )


def _fail(one: _Tracked, what: str, error: Exception) -> None:
    if not one.failed:
        _LOGGER.warning("%s %s, the training goes on without it: %s", one.name, what, one_line(error))
    one.failed = True
