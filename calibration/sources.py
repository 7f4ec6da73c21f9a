"""Opens what `--data` names: a data set of the train command, an .npz or .npy, a folder of images, a function."""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from nm2trt.calibration.feeds import (
    Array,
    ArraySource,
    Batch,
    DataSetSource,
    Source,
    check_feed,
    classification,
    only_port,
    shown,
)
from nm2trt.calibration.graph import Port
from nm2trt.calibration.images import ImageSource, Preprocessing
from nm2trt.errors import ConfigError, InputError
from nm2trt.library_errors import one_line

LABELS = "labels"
"""Name of an array in an .npz that holds classes and no input."""
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


def open_data(
    data: str,
    ports: Sequence[Port],
    *,
    samples: int,
    held_out: int,
    preprocess: str | None = None,
    data_dir: Path | None = None,
) -> Source:
    """Open the samples.

    Args:
        data: A data set's name, a path, or `package.module:function`.
        ports: The network's inputs.
        samples: Most samples to calibrate with.
        held_out: Maximum number of held-out evaluation samples.
        preprocess: For a folder of images; see `Preprocessing.parse`.
        data_dir: Where a data set's files are.

    Raises:
        ConfigError: The name is unknown, or an option is missing or not for it.
        InputError: There is no sample, or its shape or type is not the network's.
    """
    from nm2trt.data import data_names
    from nm2trt.user_code import is_reference

    path = Path(data)
    named = data in data_names()
    if path.is_dir() and not named:
        if preprocess is None:
            raise ConfigError(
                "is a folder of images, whose preprocessing must be stated",
                where=f"--data {data}",
                hint="give --preprocess imagenet, or one like 'resize=256 crop=224 mean=0.485,0.456,0.406 "
                "std=0.229,0.224,0.225'",
            )
        return ImageSource(path, Preprocessing.parse(preprocess), only_port(ports, path), samples, held_out)
    if preprocess is not None:
        raise ConfigError("is for a folder of images", where="--preprocess", hint="leave it out")
    if path.suffix in (".npy", ".npz"):
        arrays, labels = _read_arrays(path, ports)
        return ArraySource(arrays, labels, ports, samples=samples, held_out=held_out, where=path.name)
    if named or is_reference(data):
        return _named(data, ports, samples, held_out, data_dir, named=named)
    raise ConfigError(
        f"unknown data {data!r}",
        where="--data",
        hint=f"choose from {', '.join(data_names())}, or name an .npz, .npy, folder of images, package.module:function",
    )


def _named(
    data: str, ports: Sequence[Port], samples: int, held_out: int, data_dir: Path | None, *, named: bool
) -> Source:
    from nm2trt.data import DataSet, load_data_for
    from nm2trt.data.own import load_own
    from nm2trt.user_code import call, load_function

    if named:
        port = only_port(ports, data)
        return _dataset(load_data_for(data, tuple(s or 0 for s in port.shape[1:]), data_dir), port, samples, held_out)
    where = f"--data {data}"
    function = load_function(data, "--data")
    found = call(function, data, "--data", {"data_dir": data_dir})
    if isinstance(found, DataSet):
        return _dataset(found, only_port(ports, data), samples, held_out)
    if isinstance(found, tuple | list) and len(found) == 2 and not isinstance(found[0], dict | np.ndarray):
        return _dataset(load_own(data, data_dir), only_port(ports, data), samples, held_out)
    if not hasattr(found, "__iter__"):
        raise InputError(f"returned {type(found).__name__}", where=where, hint="return an iterable of batches")
    return FunctionSource(
        lambda: call(function, data, "--data", {"data_dir": data_dir}), data, ports, samples, held_out
    )


def _dataset(dataset: Any, port: Port, samples: int, held_out: int) -> DataSetSource:
    expected = port.shape[1:]
    fits = len(expected) == len(dataset.input_shape) and all(
        wanted in (None, found) for wanted, found in zip(expected, dataset.input_shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"samples are {list(dataset.input_shape)}, input {port.name!r} takes {shown(port)}", where=dataset.name
        )
    if not port.dtype.startswith("float"):
        raise InputError(f"samples are float32, input {port.name!r} takes {port.dtype}", where=dataset.name)
    return DataSetSource(dataset, port, samples, held_out)


class FunctionSource:
    """Batches that a function of the user's own yields: dicts by input name, or plain arrays for a single input.

    The function is called again for every pass, and gives the same batches each time. The first `samples` calibrate,
    the next `held_out` are held out. A dict may hold "labels".

    Args:
        make: Calls the function.
        name: `package.module:function`.
        ports: The network's inputs.
        samples: Samples to calibrate with.
        held_out: Maximum number of held-out evaluation samples.

    Raises:
        InputError: The first batch cannot be used, or there is none.
    """

    def __init__(self, make: Callable[[], Any], name: str, ports: Sequence[Port], samples: int, held_out: int) -> None:
        self._make, self._name, self._ports = make, name, ports
        self._samples, self._held_out = samples, held_out
        first = next(self._all(), None)
        if first is None:
            raise InputError("yields no sample", where=f"--data {name}")
        self.task = None if first.labels is None else classification()
        self.words = f"{name}: first {samples} samples, held out the next {held_out}"

    def calibration(self, size: int) -> Iterator[Batch]:  # noqa: ARG002 -- the function's own batches
        """See `Source`."""
        done = 0
        for batch in self._all():
            if done >= self._samples:
                return
            done += batch.count
            yield batch

    def held_out(self, size: int) -> Iterator[Batch]:  # noqa: ARG002 -- the function's own batches
        """See `Source`."""
        skipped = done = 0
        for batch in self._all():
            if skipped < self._samples:
                skipped += batch.count
            elif done < self._held_out:
                done += batch.count
                yield batch
            else:
                return

    def _all(self) -> Iterator[Batch]:
        from nm2trt.user_code import describe

        where = f"--data {self._name}"
        batches = iter(self._make())
        for number in itertools.count():
            try:
                found = next(batches)
            except StopIteration:
                return
            except Exception as error:
                raise InputError(f"raised {describe(error)} at batch {number}", where=where) from error
            yield self._batch(found, f"{where} batch {number}")

    def _batch(self, found: Any, where: str) -> Batch:
        import torch

        if not isinstance(found, dict):
            found = {only_port(self._ports, where).name: found}
        feed = {name: np.asarray(array) for name, array in found.items() if name != LABELS}
        check_feed(feed, self._ports, where)
        labels = torch.as_tensor(np.asarray(found[LABELS])) if LABELS in found else None
        return Batch(feed, len(next(iter(feed.values()))), labels)


def _read_arrays(path: Path, ports: Sequence[Port]) -> tuple[dict[str, Array], Array | None]:
    try:
        if path.suffix == ".npy":
            return {only_port(ports, path).name: np.load(path, mmap_mode="r", allow_pickle=False)}, None
        arrays = _mapped_npz(path)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise InputError(
            f"is no readable array file: {one_line(error)}", where=path, hint="save it with numpy"
        ) from None
    labels = arrays.pop(LABELS, None)
    if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise InputError(f"labels are {list(labels.shape)} {labels.dtype} and not [N] integers", where=path)
    if len(arrays) == 1 and len(ports) == 1:
        # A single array is meant for the single input, whatever it is called.
        arrays = {ports[0].name: next(iter(arrays.values()))}
    return arrays, labels


def _mapped_npz(path: Path) -> dict[str, Array]:
    """Map the arrays of an uncompressed .npz; compressed ones are read into memory."""
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED:
                with archive.open(info) as member:
                    arrays[name] = npy_format.read_array(member, allow_pickle=False)
                continue
            raw.seek(info.header_offset)
            fields = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
            raw.seek(info.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1])
            version = npy_format.read_magic(raw)
            reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, fortran, dtype = reader(raw)
            if dtype.hasobject:
                raise ValueError(f"array {name!r} holds objects")
            order: Any = "F" if fortran else "C"
            arrays[name] = (
                np.memmap(path, dtype, "r", raw.tell(), shape, order) if 0 not in shape else np.zeros(shape, dtype)
            )
    return arrays
