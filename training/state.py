"""The saved state of a run: everything that the next step depends on, in one file that is replaced atomically.

Several processes write their parts of the optimizer and the sparsifier into a folder beside it, which the file names,
and the whole network as a safetensors file. Tensors and plain values only, read by torch's weights-only loader and by
safetensors: a state cannot run code.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from nm2trt.artifacts import write_atomic
from nm2trt.errors import ConfigError, InputError
from nm2trt.library_errors import one_line
from nm2trt.training.checkpoint import checkpoint_bytes
from nm2trt.training.history import History, Session
from nm2trt.training.processes import decide_on_first
from nm2trt.training.sad import LayerSad, Sad
from nm2trt.training.sharded_tensors import join_tensors, load_shards, save_shards, split_tensors
from nm2trt.training.sharding import like, whole
from nm2trt.training.sparsifier import Sparsifier

FILE = "state/last.pt"
MODEL = "model.safetensors"
"""The whole network, in the folder of the shards."""
SCHEMA = "nm2trt.state/1"


@dataclass(slots=True)
class Position:
    """Where a run is."""

    epoch: int = 1
    """The epoch at hand, from 1."""
    batch: int = 0
    """Batches of this epoch that each process has done."""
    loss_sum: float = 0.0
    """Of this epoch's samples of this process."""
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

    Several processes write `folder/state/step-N/` first: the shards and the whole network.

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
    per_process = gather_object([(_generators(), position.loss_sum, position.samples)])
    model = parts.accelerator.unwrap_model(parts.model)
    model_state = whole(model.state_dict())
    scaler = parts.accelerator.scaler
    content = {
        "schema": SCHEMA,
        "processes": parts.accelerator.num_processes,
        "batch_size": history.sessions[-1].batch_size,
        "settings": dict(settings),
        "samples": dict(samples),
        "threads": torch.get_num_threads(),
        "position": asdict(position),
        "schedule": {"last_epoch": parts.schedule.last_epoch},
        "scaler": scaler.state_dict() if scaler is not None else {},
        "generators": [generators for generators, _, _ in per_process],
        "loss_sums": [(loss_sum, count) for _, loss_sum, count in per_process],
        "history": _history_json(history),
    }
    (folder / FILE).parent.mkdir(exist_ok=True)
    if parts.accelerator.num_processes == 1:
        stored = {
            "model": model_state,
            "optimizer": whole(parts.optimizer.state_dict()),
            "sparsifier": whole(parts.sparsifier.state_dict()),
        }
    else:
        stored = _save_sharded(folder, parts, model_state)
    if parts.accelerator.is_main_process:
        buffer = io.BytesIO()
        torch.save(content | stored, buffer)
        write_atomic(folder / FILE, buffer.getvalue())
        _clear_shards(folder, keep=stored.get("shards"))


def _save_sharded(folder: Path, parts: Parts, model_state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write shards and network beside the state that still holds; returns what the new one has instead of tensors."""
    step = parts.schedule.last_epoch
    name = decide_on_first(lambda: _new_shards(folder, step))
    plain, tensors = split_tensors(_sharded_state(parts), "")
    save_shards(folder / name, tensors)
    if parts.accelerator.is_main_process:
        content = checkpoint_bytes(model_state, parts.sparsifier.patterns(), parts.sparsifier.method)
        write_atomic(folder / name / MODEL, content)
    return {"shards": name, **plain}


def _sharded_state(parts: Parts) -> dict[str, Any]:
    return {"optimizer": parts.optimizer.state_dict(), "sparsifier": parts.sparsifier.state_dict()}


def _new_shards(folder: Path, step: int) -> str:
    """Make an empty folder for this moment's shards; a save that was cut off may have left one of the same step."""
    path = (folder / FILE).parent
    number, found = 0, path / f"step-{step}"
    while found.exists():
        number += 1
        found = path / f"step-{step}.{number}"
    found.mkdir(parents=True)
    return found.relative_to(folder).as_posix()


def _clear_shards(folder: Path, *, keep: str | None) -> None:
    """Remove the shards of earlier moments."""
    for path in (folder / FILE).parent.glob("step-*"):
        if keep is None or path != folder / keep:
            shutil.rmtree(path, ignore_errors=True)


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
        raise InputError(f"cannot be read or is not safe to load: {one_line(error)}", where=path, hint=again) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"is no state of schema {SCHEMA}", where=path, hint=again)
    return content


def position_of(content: dict[str, Any], accelerator: Accelerator) -> Position:
    """Where the run was when the state was saved, as this process goes on from it."""
    position = Position(**content["position"])
    # Older states have the first process's sums only.
    sums = content.get("loss_sums") or [(position.loss_sum, position.samples)] * accelerator.num_processes
    if len(sums) == accelerator.num_processes:
        position.loss_sum, position.samples = sums[accelerator.process_index]
    else:
        first = accelerator.is_main_process
        position.loss_sum = sum(loss_sum for loss_sum, _ in sums) if first else 0.0
        position.samples = sum(count for _, count in sums) if first else 0
    return position


def restore(content: dict[str, Any], parts: Parts, folder: Path) -> History:
    """Put a state into a run that was set up with the same configuration, by any number of processes.

    Args:
        content: From `read_state`.
        parts: The run, in the phase that the state is of.
        folder: Its folder.

    Raises:
        ConfigError: It is of another network, method or pattern.
        InputError: Its shards are damaged or missing.
    """
    content = _with_shards(content, parts, folder)
    model = parts.accelerator.unwrap_model(parts.model)
    targets = model.state_dict()
    try:
        model.load_state_dict(
            {name: like(value, targets[name]) if name in targets else value for name, value in content["model"].items()}
        )
    except RuntimeError as error:
        raise ConfigError(f"the state is of another network: {one_line(error, whole=True)}") from None
    parts.optimizer.load_state_dict(_placed(content["optimizer"], parts.optimizer))
    parts.sparsifier.load_state_dict(content["sparsifier"])
    _set_schedule(parts.schedule, content["schedule"]["last_epoch"], content["optimizer"])
    if parts.accelerator.scaler is not None and content["scaler"]:
        parts.accelerator.scaler.load_state_dict(content["scaler"])
    # Another number of processes has no generators of its own to go on with.
    generators = content["generators"]
    _set_generators(generators[parts.accelerator.process_index % len(generators)])
    return _history(content)


def _with_shards(content: dict[str, Any], parts: Parts, folder: Path) -> dict[str, Any]:
    """Read the tensors that are not in the state's own file, each process its part."""
    if "shards" not in content:
        return content
    shards = folder / content["shards"]
    _, current = split_tensors(_sharded_state(parts), "")
    parameters = _parameters(parts.optimizer)

    def prototype(name: str) -> torch.Tensor | None:
        part, _, rest = name.removeprefix("/").partition("/")
        if part != "optimizer":
            return current.get(name)
        index = rest.split("/")[1]
        return parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None

    try:
        model = load_file(shards / MODEL)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read: {error}", where=shards / MODEL, hint="train again with --force") from None
    plain = {name: content[name] for name in ("optimizer", "sparsifier")}
    return {**content, "model": model, **join_tensors(plain, load_shards(shards, prototype))}


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _placed(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with what belongs to sharded parameters sharded like them."""
    parameters = _parameters(optimizer)
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


def _history(content: Mapping[str, Any]) -> History:
    raw = json.loads(content["history"])
    for row in raw["metrics"]:
        if "test_accuracy" in row:
            # As older states call it.
            row["test_score"] = row.pop("test_accuracy")
    last = raw.pop("last_sad")
    if last is not None:
        last = Sad(step=last["step"], layers=[LayerSad(**layer) for layer in last["layers"]])
    sessions = [Session(**session) for session in raw.pop("sessions", [])]
    return History(last_sad=last, sessions=sessions, **raw)
