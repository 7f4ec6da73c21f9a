"""The processes of a run under torchrun or accelerate launch: their group, and what the first one decides for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from nm2trt.errors import ConfigError, Nm2trtError

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process writes and prints; torchrun and accelerate number their processes in RANK."""
    return os.environ.get("RANK", "0") == "0"


def start_processes(*, cpu: bool) -> None:
    """Join the process group, where the environment names one and none has been made yet.

    Args:
        cpu: Stay on the CPU (gloo), whatever accelerator there is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _is_grouped():
        # accelerate's own start, so that the Accelerator of the run finds what it would have made.
        PartialState._reset_state()  # noqa: SLF001 -- it offers no public way
        PartialState(cpu=cpu, **_fresh_store())


def _fresh_store() -> dict[str, Any]:
    """Arguments of the process group for a start after a restart: torchrun keeps one store for all of its restarts.

    Without a prefix of their own, the new processes read the addresses of those that were killed: connections are
    refused, or both wait for each other (torch 2.14: `_create_c10d_store` expects a new store for each restart, while
    the agent's dynamic rendezvous keeps the first).
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0":
        return {}
    store, rank, world_size = next(iter(rendezvous("env://")))
    return {"store": PrefixStore(f"nm2trt/restart_{restarts}", store), "rank": rank, "world_size": world_size}


def process_count() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if _is_grouped() else 1


def decide_on_first(work: Callable[[], T]) -> T:
    """Run something on the first process only, and give its result to all.

    Args:
        work: Returns something that can be pickled.

    Raises:
        Nm2trtError: `work` raised it; every process raises the same, so none waits for the others.
    """
    if not _is_grouped():
        return work()
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = work()
        except Nm2trtError as error:
            found[1] = (type(error), error.what, error.where, error.hint)
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        kind, what, where, hint = found[1]
        raise kind(what, where=where, hint=hint)
    result: T = found[0]
    return result


def share_per_process(batch_size: int, before: int, now: int) -> int:
    """Samples per process and micro-batch, so that all processes together take as many as before.

    Args:
        batch_size: Of each process, before.
        before: Processes before.
        now: Processes now.

    Raises:
        ConfigError: The samples cannot be shared evenly.
    """
    total = batch_size * before
    if total % now:
        fitting = [count for count in range(1, total + 1) if total % count == 0]
        near = sorted(fitting, key=lambda count: abs(count - now))[:3]
        raise ConfigError(
            f"the run takes {total} samples at a time ({before} processes with {batch_size} each), which {now} "
            "processes cannot share evenly",
            where="--resume",
            hint=f"start {' or '.join(map(str, sorted(near)))} processes",
        )
    return total // now


@contextmanager
def process_group_ends() -> Iterator[None]:
    """End the process group after the block, so that no process aborts at exit over connections that others closed.

    Whoever owns the process uses this, once: a group that has ended cannot be made again under the same launcher.
    """
    try:
        yield
    except BaseException:
        # NCCL would wait for work of processes that may be gone.
        if _is_grouped() and dist.get_backend() == "gloo":
            dist.destroy_process_group()
        raise
    if _is_grouped():
        dist.barrier()
        dist.destroy_process_group()


def _is_grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
