"""The saved state of a run: everything that the next step depends on, in one file that is replaced atomically.

Tensors and plain values only, read by torch's weights-only loader: a state file cannot run code.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from nm2trt.artifacts import write_atomic
from nm2trt.errors import ConfigError, InputError
from nm2trt.training.history import History
from nm2trt.training.sad import LayerSad, Sad
from nm2trt.training.sharding import like, whole
from nm2trt.training.sparsifier import Sparsifier

FILE = "state/last.pt"
SCHEMA = "nm2trt.state/1"


@dataclass(slots=True)
class Position:
    """Where a run is."""

    epoch: int = 1
    """The epoch at hand, from 1."""
    batch: int = 0
    """Batches of this epoch that each process has done."""
    loss_sum: float = 0.0
    """Of this epoch's samples of the first process."""
    samples: int = 0


@dataclass(slots=True, kw_only=True)
class Parts:
    """The objects whose state is a run's state."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    sparsifier: Sparsifier


def save_state(
    folder: Path,
    parts: Parts,
    position: Position,
    history: History,
    *,
    settings: Mapping[str, Any],
    samples: Mapping[str, int],
) -> None:
    """Write `folder/state/last.pt`; until the rename, the state before stays as it is. Every process calls this.

    Args:
        folder: The run's.
        parts: What is saved.
        position: Where the run is.
        history: Its records.
        settings: The configuration, in plain values.
        samples: How many samples there are to train on and to test with.

    Raises:
        OSError: The disk is full; the state before is untouched.
    """
    generators = gather_object([_generators()])
    model = parts.accelerator.unwrap_model(parts.model)
    sparsifier = whole(parts.sparsifier.state_dict())
    model_state, optimizer_state = whole(model.state_dict()), whole(parts.optimizer.state_dict())
    if not parts.accelerator.is_main_process:
        return
    scaler = parts.accelerator.scaler
    content = {
        "schema": SCHEMA,
        "processes": parts.accelerator.num_processes,
        "settings": dict(settings),
        "samples": dict(samples),
        "threads": torch.get_num_threads(),
        "position": asdict(position),
        "model": model_state,
        "optimizer": optimizer_state,
        "schedule": {"last_epoch": parts.schedule.last_epoch},
        "sparsifier": sparsifier,
        "scaler": scaler.state_dict() if scaler is not None else {},
        "generators": generators,
        "history": _history_json(history),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read_state(folder: Path) -> dict[str, Any]:
    """Read `folder/state/last.pt` with torch's weights-only loader.

    Raises:
        InputError: The file is damaged, of another schema, or would run code.
    """
    path = folder / FILE
    again = "train again with --force"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 -- damaged files end in whatever the unpickler or zip reader raises
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise InputError(f"cannot be read or is not safe to load: {reason}", where=path, hint=again) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"is no state of schema {SCHEMA}", where=path, hint=again)
    return content


def position_of(content: dict[str, Any]) -> Position:
    """Where the run was when the state was saved."""
    return Position(**content["position"])


def restore(content: dict[str, Any], parts: Parts) -> History:
    """Put a state into a run that was set up with the same configuration.

    Args:
        content: From `read_state`.
        parts: The run, in the phase that the state is of.

    Raises:
        ConfigError: It is of another network, method, pattern or number of processes.
    """
    processes = parts.accelerator.num_processes
    if content["processes"] != processes:
        raise ConfigError(f"the run had {content['processes']} processes, not {processes}", hint="start as many")
    model = parts.accelerator.unwrap_model(parts.model)
    targets = model.state_dict()
    try:
        model.load_state_dict(
            {name: like(value, targets[name]) if name in targets else value for name, value in content["model"].items()}
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the state is of another network: {reason[:200]}") from None
    parts.optimizer.load_state_dict(_placed(content["optimizer"], parts.optimizer))
    parts.sparsifier.load_state_dict(content["sparsifier"])
    _set_schedule(parts.schedule, content["schedule"]["last_epoch"], content["optimizer"])
    if parts.accelerator.scaler is not None and content["scaler"]:
        parts.accelerator.scaler.load_state_dict(content["scaler"])
    _set_generators(content["generators"][parts.accelerator.process_index])
    return _history(content["history"])


def _placed(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with what belongs to sharded parameters sharded like them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    placed = {
        index: {
            key: like(value, parameters[index]) if isinstance(value, torch.Tensor) else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": placed}


def _set_schedule(schedule: Any, last_epoch: int, optimizer: dict[str, Any]) -> None:
    # LambdaLR's own state would hold the lambda; the optimizer's groups hold the rates that it had set.
    schedule.last_epoch = last_epoch
    schedule._last_lr = [group["lr"] for group in optimizer["param_groups"]]  # noqa: SLF001 -- what get_last_lr reads


def _generators() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _history_json(history: History) -> str:
    return json.dumps(asdict(history))


def _history(text: str) -> History:
    raw = json.loads(text)
    for row in raw["metrics"]:
        if "test_accuracy" in row:
            # As older states call it.
            row["test_score"] = row.pop("test_accuracy")
    last = raw.pop("last_sad")
    if last is not None:
        last = Sad(step=last["step"], layers=[LayerSad(**layer) for layer in last["layers"]])
    return History(last_sad=last, **raw)
