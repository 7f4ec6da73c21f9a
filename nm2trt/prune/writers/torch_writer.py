"""Write weights into a file of `torch.save`.

A zip archive, which torch writes since 1.6, is mapped and patched: the pickle, which describes dicts, classes,
devices and views, is never written again. Older files are one stream and are saved anew in their own format.
"""

from __future__ import annotations

import mmap
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.errors import InputError
from nm2trt.layers.checkpoint import layers_of
from nm2trt.layers.torch_reader import is_strided, named_tensors, torch_content, torch_tensors
from nm2trt.prune.naming import classifier_reason
from nm2trt.prune.writers.stored import Array, CheckpointFacts, StoredWeight, as_integers

if TYPE_CHECKING:
    import torch

_LOCAL_HEADER_BYTES = 30
_LOCAL_CRC, _LOCAL_NAME_LENGTH = 14, 26
_CENTRAL_HEADER_BYTES = 46
_CENTRAL_CRC, _CENTRAL_NAME_LENGTH = 16, 28
_DESCRIPTOR_FLAG = 1 << 3
_PIECE_BYTES = 1 << 24


class TorchFile:
    """Open a copy of a .pt, .pth or .bin file; errors as `nm2trt.layers.open_source`."""

    def __init__(self, path: Path, facts: CheckpointFacts) -> None:
        self._path = path
        self._is_zip = zipfile.is_zipfile(path)
        layers = list(layers_of(torch_tensors(path), facts.neighbors))
        self._content: object = _mapped(path) if self._is_zip else torch_content(path)
        tensors = named_tensors(self._content, path)
        self.weights = [
            StoredWeight(
                layer=layer,
                key=_place(tensors[layer.name]),
                read=partial(_read, tensors[layer.name]),
                write=partial(_write, tensors[layer.name]),
                masked=True,
                dense_unless_named=classifier_reason(layer, facts.classifiers),
                refused=_refused(tensors[layer.name]),
            )
            for layer in layers
        ]

    def write_others(self, values: Mapping[str, Array]) -> None:
        """Refuse: a checkpoint has no graph that would read them."""
        raise NotImplementedError(", ".join(values))

    def save(self) -> None:
        """Bring the archive's check sums up to date; write an old-format file anew."""
        if self._is_zip:
            self.weights = []
            self._content = None
            _mend_checksums(self._path)
            return
        import torch

        torch.save(self._content, self._path, _use_new_zipfile_serialization=False)


def _mapped(path: Path) -> object:
    """Load so that writing to a tensor writes to the file."""
    from torch.serialization import set_default_mmap_options

    with set_default_mmap_options(mmap.MAP_SHARED):
        return torch_content(path)


def _refused(tensor: torch.Tensor) -> str:
    return "" if is_strided(tensor) else "stored as a sparse tensor: save weight.to_dense()"


def _place(tensor: torch.Tensor) -> object:
    if not is_strided(tensor):
        return id(tensor)
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _read(tensor: torch.Tensor) -> Array:
    import ml_dtypes
    import numpy as np

    name = str(tensor.dtype).removeprefix("torch.")
    bits = _bits(tensor).contiguous().numpy()
    return np.array(bits).view(getattr(ml_dtypes, name, None) or np.dtype(name))


def _write(tensor: torch.Tensor, array: Array) -> None:
    import torch

    _bits(tensor).copy_(torch.from_numpy(as_integers(array)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(integers[tensor.element_size()])


def _mend_checksums(path: Path) -> None:
    """Write the CRC-32 of every stored entry into the three places where a zip archive keeps it."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        directory = archive.start_dir
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = directory
        for entry in entries:
            if _four(data, at) != b"PK\x01\x02" or _four(data, entry.header_offset) != b"PK\x03\x04":
                raise InputError("is no plain zip archive", where=path, hint="save it again with torch.save")
            start = _data_start(data, entry.header_offset)
            crc = _crc(data, start, start + entry.compress_size)
            if crc != entry.CRC and entry.compress_type == zipfile.ZIP_STORED:
                _put(data, at + _CENTRAL_CRC, crc)
                if entry.flag_bits & _DESCRIPTOR_FLAG:
                    end = start + entry.compress_size
                    _put(data, end + 4 if _four(data, end) == b"PK\x07\x08" else end, crc)
                if _four(data, entry.header_offset + _LOCAL_CRC) != bytes(4):
                    _put(data, entry.header_offset + _LOCAL_CRC, crc)
            lengths = [_short(data, at + _CENTRAL_NAME_LENGTH + 2 * i) for i in range(3)]
            at += _CENTRAL_HEADER_BYTES + sum(lengths)


def _data_start(data: mmap.mmap, header: int) -> int:
    at = header + _LOCAL_NAME_LENGTH
    return header + _LOCAL_HEADER_BYTES + _short(data, at) + _short(data, at + 2)


def _crc(data: mmap.mmap, start: int, end: int) -> int:
    crc = 0
    for at in range(start, end, _PIECE_BYTES):
        crc = zlib.crc32(data[at : min(at + _PIECE_BYTES, end)], crc)
    return crc


def _four(data: mmap.mmap, at: int) -> bytes:
    return data[at : at + 4]


def _short(data: mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _put(data: mmap.mmap, at: int, crc: int) -> None:
    data[at : at + 4] = crc.to_bytes(4, "little")
