"""Checkpoints: what the names and shapes say, and files that lie."""

import contextlib
import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from nm2trt.errors import InputError
from nm2trt.layers import METHOD_KEY, PATTERNS_KEY, open_layers, open_source

GOOD = save({"a.weight": np.arange(32, dtype=np.float32).reshape(4, 8), "a.bias": np.ones(4, np.float16)})


def file_with(header, data=b"", length=None):
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def load_all(path):
    for layer in open_layers(path):
        assert layer.weight().shape == layer.shape


CORRUPT = {
    "empty": b"",
    "seven bytes": GOOD[:7],
    "garbage": b"this was never a checkpoint, but somebody named it so",
    "truncated header": GOOD[:40],
    "truncated data": GOOD[:-1],
    "longer than said": GOOD + b"\0",
    "header of 2**60": file_with(b"{}", length=1 << 60),
    "header longer than the file": file_with(b"{" * 64, length=90_000_000),
    "nested 100000 deep": file_with(b'{"a":' + b"[" * 100_000),
    "not JSON": file_with(b"{'a': 1}"),
    "JSON list": file_with(b"[1, 2]"),
    "shape of 2**40": file_with({"a": entry([1 << 40], 0, 32)}, bytes(32)),
    "shape that overflows": file_with({"a": entry([1 << 33, 1 << 33], 0, 32)}, bytes(32)),
    "negative shape": file_with({"a": entry([-8], 0, 32)}, bytes(32)),
    "offsets past the end": file_with({"a": entry([8], 0, 32)}, bytes(16)),
    "offsets backwards": file_with({"a": entry([8], 32, 0)}, bytes(32)),
    "overlap": file_with({"a": entry([8], 0, 32), "b": entry([8], 0, 32)}, bytes(32)),
    "unknown type": file_with({"a": entry([8], 0, 32, "F37")}, bytes(32)),
    "no offsets": file_with({"a": {"dtype": "F32", "shape": [8]}}, bytes(32)),
    "pickle": b"\x80\x02c__builtin__\nexit\nq\x00.",
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_file_is_one_line_and_little_memory(name, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(CORRUPT[name])
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        load_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < 8 << 20


@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory, data):
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("mutated") / "model.safetensors"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw))
    # Anything but an InputError fails the test.
    with contextlib.suppress(InputError):
        load_all(path)


@pytest.mark.parametrize(
    ("name", "shape", "op", "axis"),
    [
        ("fc.weight", (10, 64), "linear", 1),
        ("rnn.weight_ih_l0", (16, 8), "linear", 1),
        ("attn.in_proj_weight", (24, 8), "linear", 1),
        ("conv.weight", (8, 4, 3), "conv", 1),
        ("conv.weight", (8, 4, 3, 3), "conv", 1),
        ("conv.weight", (8, 4, 3, 3, 3), "conv", 1),
        ("conv.weight", (8, 1, 3, 3), "conv", None),
        ("patch_embed.proj.weight", (8, 4, 3, 3), "conv", 1),
        ("time_embedding.linear_1.weight", (8, 4), "linear", 1),
        ("bn.weight", (8,), "other", None),
        ("fc.bias", (8,), "other", None),
        ("scale", (), "other", None),
        ("bert.embeddings.word_embeddings.weight", (50, 8), "embedding", None),
        ("transformer.wte.weight", (50, 8), "embedding", None),
        ("model.embed_tokens.weight", (50, 8), "embedding", None),
        ("pos_embed", (1, 5, 8), "other", None),
        ("relative_position_bias_table", (9, 4), "other", None),
        ("empty.weight", (0, 4), "other", None),
        ("", (4, 4), "linear", 1),
        ("strange [bold]name\n\x1b.weight", (4, 4), "linear", 1),
    ],
)
def test_operators_are_guessed_from_names_and_shapes(name, shape, op, axis, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: np.zeros(shape, np.float32)}, path)
    (layer,) = open_layers(path)
    assert (layer.name, layer.op, layer.shape, layer.reduction_axis) == (name, op, shape, axis)
    assert bool(layer.why_not) == (axis is None or layer.not_checked)
    assert layer.not_checked == (name == "")


@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_, ml_dtypes.float8_e4m3fn],
)
def test_values_come_back_bit_for_bit(dtype, tmp_path):
    path = tmp_path / "model.safetensors"
    weight = np.arange(24).reshape(4, 6).astype(dtype)
    save_file({"first.weight": np.ones((3, 5), np.float16), "w.weight": weight, "z.bias": np.ones(1)}, path)
    (layer,) = (layer for layer in open_layers(path) if layer.name == "w.weight")
    assert layer.dtype == np.dtype(dtype).name
    assert layer.weight().dtype == weight.dtype
    assert layer.weight().tobytes() == weight.tobytes()


def test_one_tensor_in_memory_at_a_time(tmp_path):
    path = tmp_path / "model.safetensors"
    size = 1 << 22
    save_file({f"{i}.weight": np.zeros((1024, 1024), np.float32) for i in range(8)}, path)
    tracemalloc.start()
    for layer in open_layers(path):
        layer.weight()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * size


def test_metadata_is_read_and_checked(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"w.weight": np.zeros((4, 4), np.float32)}
    save_file(tensors, path, metadata={PATTERNS_KEY: '{"w.weight": "2:4"}', METHOD_KEY: "sr-ste"})
    source = open_source(path)
    assert (source.kind, source.patterns, source.method) == ("checkpoint", {"w.weight": "2:4"}, "sr-ste")
    save_file(tensors, path)
    assert open_source(path).patterns is None
    for bad in ("{", "[]", '{"w": 3}', '{"w": "4:2"}', "[" * 100_000):
        save_file(tensors, path, metadata={PATTERNS_KEY: bad})
        with pytest.raises(InputError, match=PATTERNS_KEY):
            open_source(path)
