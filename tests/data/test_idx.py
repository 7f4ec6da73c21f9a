import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.data.idx import read_idx
from nm2trt.errors import InputError


def idx_bytes(array):
    """The format as LeCun's page states it, written by hand: 0, 0, type, rank, sizes, big-endian values."""
    kinds = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
    header = bytes([0, 0, kinds[array.dtype.str[1:]], array.ndim])
    return (
        header
        + b"".join(struct.pack(">I", size) for size in array.shape)
        + array.astype(">" + array.dtype.str[1:]).tobytes()
    )


@given(
    kind=st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    packed=st.booleans(),
)
def test_reads_back_every_type_plain_or_gzipped(tmp_path_factory, kind, shape, packed):
    array = (np.arange(np.prod(shape, dtype=int)) * 3 % 100).astype(kind).reshape(shape)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    found = read_idx(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(cut=st.integers(0, 200), flip=st.integers(0, 15), packed=st.booleans())
def test_damage_is_an_input_error_or_reads_as_stored(tmp_path_factory, cut, flip, packed):
    good = idx_bytes(np.arange(24, dtype="u1").reshape(2, 3, 4))
    bad = bytearray(good[: max(0, len(good) - cut)])
    if bad:
        bad[flip % len(bad)] ^= 0xFF
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(bytes(bad)) if packed else bytes(bad))
    try:
        array = read_idx(path)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
    else:
        assert array.nbytes == len(bad) - 4 - 4 * array.ndim


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (b"\0\0\x08", "no idx file"),
        (b"PK\x03\x04zip", "no idx file"),
        (b"\0\0\x08\x03\0\0\0\x02", "truncated inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "promises 5 bytes of data, the file has 3"),
        (b"\0\0\x08\x01\xff\xff\xff\xffabc", "promises 4294967295 bytes of data, the file has 3"),
        (b"\x1f\x8bnot really gzip", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_idx(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_idx(tmp_path / "nothing")
