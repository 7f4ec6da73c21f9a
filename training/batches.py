"""Loaders of a data set: batches that follow from (seed, epoch, number of the batch) alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from nm2trt.data import DataSet, Samples
from nm2trt.data.samples import ArraySamples, Batch, LazySamples, SampleError, draw, unusable
from nm2trt.data.tasks import Classification
from nm2trt.errors import InputError
from nm2trt.user_code import describe

_TEST_BATCH = 1024
_TEST_BATCH_NUMBERS = 2**24
"""64 MiB of float32 in one test batch at most."""
_MOST_WORKERS = 8
_PREFETCHED_BATCHES = 4
_CHUNK = 4096


class EpochOrder(Sampler[int]):
    """Keys `epoch * count + index` in an order drawn from the seed and the epoch.

    accelerate finds `set_epoch` on the sampler of a batch sampler, under each of its wrappers.

    Args:
        count: Samples of the data set.
        seed: Of the run; None keeps the order of the data set.
        multiple: The last samples of an epoch are left out where they do not fill so many.
    """

    def __init__(self, count: int, seed: int | None, *, multiple: int = 1) -> None:
        self._count = count
        self._seed = seed
        self._used = count // multiple * multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Count the samples of an epoch."""
        return self._used

    def __iter__(self) -> Iterator[int]:
        """Yield the keys of one epoch."""
        if self._seed is None:
            yield from range(self._used)
            return
        generator = torch.Generator().manual_seed(draw(self._seed, self.epoch))
        keys_N = torch.randperm(self._count, generator=generator) + self.epoch * self._count
        # In chunks: as a whole list, ImageNet's keys alone take 50 MB.
        for start in range(0, self._used, _CHUNK):
            yield from keys_N[start : min(start + _CHUNK, self._used)].tolist()


class _Batches(Dataset[Batch]):
    """Hands whole batches of keys on; per-sample fetches from memory dominate small networks."""

    def __init__(self, samples: Samples, seed: int, data: DataSet) -> None:
        self._samples = samples
        self._seed = seed
        self._data = data
        self._checked = isinstance(samples, ArraySamples | LazySamples)
        self._where = f"{data.name} {'train' if samples is data.train else 'test'}"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        if self._checked:
            return self._samples.fetch(keys, self._seed)
        try:
            batch = self._samples.fetch(keys, self._seed)
        except InputError as error:
            raise SampleError(error.what, where=error.where, hint=error.hint) from None
        except Exception as error:
            raise SampleError(f"fetch raised {describe(error)}", where=self._where) from error
        self._check(batch, keys)
        return batch

    def _check(self, batch: Any, keys: Sequence[int]) -> None:
        """Check a batch of a class of the user's own."""
        try:
            x_BX, y_B = batch
            shape = [len(keys), *self._data.input_shape]
            if list(x_BX.shape) != shape or x_BX.dtype != torch.float32 or len(y_B) != len(keys):
                found = f"x {list(x_BX.shape)} {x_BX.dtype} and {len(y_B)} labels"
                raise SampleError(f"fetch returned {found}, not x {shape} float32 and labels", where=self._where)
        except (TypeError, ValueError, AttributeError):
            raise SampleError(f"fetch returned {type(batch).__name__}, not (x, labels)", where=self._where) from None
        for index, (x_X, label) in enumerate(zip(x_BX, y_B, strict=True)):
            where = f"{self._where} sample {int(keys[index]) % len(self)}"
            if (words := unusable(x_X)) is not None:
                raise SampleError(words, where=where)
            if isinstance(self._data.task, Classification) and not 0 <= int(label) < self._data.classes:
                raise SampleError(f"the label is {int(label)}, outside 0..{self._data.classes - 1}", where=where)


def _already_a_batch(batch: Any) -> Any:
    return batch


def train_loader(
    data: DataSet,
    *,
    batch_size: int,
    seed: int,
    workers: int | None = None,
    pin_memory: bool = False,
    processes: int = 1,
) -> DataLoader[Batch]:
    """Loader of the training samples, without the incomplete last batch. Iterate it through `epoch_batches`.

    An epoch is the same samples for any number of processes that take as many together at a time.

    Its global random generators are left alone, so that a resumed run draws the same numbers for dropout.

    Args:
        data: The data set.
        batch_size: Samples per process and micro-batch.
        seed: Of order and augmentation.
        workers: Processes that read samples; None decides by the data set. Changes no batch.
        pin_memory: Copy batches to page-locked memory, for a GPU.
        processes: How many take a batch each at a time.
    """
    # A last batch of a few samples would feed batch norm statistics of its own.
    drop_last = len(data.train) >= batch_size
    at_a_time = batch_size * processes
    order = EpochOrder(len(data.train), seed, multiple=at_a_time if len(data.train) >= at_a_time else 1)
    return _loader(data, data.train, BatchSampler(order, batch_size, drop_last), seed, workers, pin_memory)


def evaluation_loader(data: DataSet, *, workers: int | None = None, pin_memory: bool = False) -> DataLoader[Batch]:
    """Loader of all test samples, in order."""
    size = max(1, int(torch.Size(data.input_shape).numel()))
    batch_size = max(1, min(_TEST_BATCH, _TEST_BATCH_NUMBERS // size))
    order = EpochOrder(len(data.test), None)
    return _loader(data, data.test, BatchSampler(order, batch_size, False), 0, workers, pin_memory)


def epoch_batches(loader: Any, epoch: int, *, skip: int = 0) -> Any:
    """One epoch of a train loader, from batch `skip` on; skipped batches are not read.

    Args:
        loader: From `train_loader`, as it is or as `accelerator.prepare` returned it.
        epoch: Counted from any number; the same number always gives the same batches.
        skip: Batches of this process that were used before.

    Returns:
        A loader to iterate once.
    """
    set_epoch = getattr(loader, "set_epoch", None) or loader.batch_sampler.sampler.set_epoch
    set_epoch(epoch)
    return skip_first_batches(loader, skip) if skip else loader


def _loader(
    data: DataSet,
    samples: Samples,
    batches: BatchSampler,
    seed: int,
    workers: int | None,
    pin_memory: bool,
) -> DataLoader[Batch]:
    count = _workers(samples) if workers is None else workers
    several: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": _PREFETCHED_BATCHES} if count else {}
    return DataLoader(
        _Batches(samples, seed, data),
        batch_sampler=batches,
        collate_fn=_already_a_batch,
        num_workers=count,
        pin_memory=pin_memory,
        # Without a generator of its own, a loader draws from the global one whenever it is iterated.
        generator=torch.Generator(),
        **several,
    )


def _workers(samples: Samples) -> int:
    if samples.in_memory:
        return 0
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)
