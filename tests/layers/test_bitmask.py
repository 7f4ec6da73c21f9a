"""compressed-tensors' bit masks against a loop over bits."""

import numpy as np
import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from nm2trt.errors import InputError
from nm2trt.layers import open_layers
from nm2trt.pattern import NMPattern, mask
from nm2trt.prune import Request, prune_path
from nm2trt.verify import verify_path


def packed(name, weight, *, flat=False):
    """As the library writes it: one loop over rows, one over columns."""
    rows, columns = weight.shape
    values, bits = [], np.zeros((rows, (columns + 7) // 8), np.uint8)
    for row in range(rows):
        for column in range(columns):
            if weight[row, column] != 0:
                values.append(weight[row, column])
                bits[row, column // 8] |= 1 << (column % 8)
    kept = np.array(values, weight.dtype)
    parts = {"compressed": kept if flat else kept.reshape(rows, -1), "bitmask": bits, "shape": np.array(weight.shape)}
    if flat:
        parts["row_offsets"] = np.zeros(rows, np.int64)
    return {f"{name}.{part}": array for part, array in parts.items()}


def sparse(*shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    return np.where(mask(weight, NMPattern(2, 4), 1), weight, np.float16(0))


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 20)), elements=st.sampled_from([0, 1, -2.5])))
@examples(60)
def test_values_come_back(tmp_path_factory, weight):
    path = tmp_path_factory.mktemp("bits") / "m.safetensors"
    save_file(packed("a.weight", weight, flat=True), path)
    (layer,) = [layer for layer in open_layers(path) if layer.packed]
    assert (layer.name, layer.shape) == ("a.weight", weight.shape)
    assert np.array_equal(layer.weight(), weight)


@pytest.mark.parametrize("flat", [False, True])
def test_a_packed_file_is_verified_and_never_pruned_again(flat, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({**packed("q.weight", sparse(16, 32), flat=flat), **packed("k.weight", sparse(8, 32), flat=flat)}, path)
    document = verify_path(path, strict=True)
    assert (document.verdict, document.totals.verdicts["conforms"], document.totals.not_checked) == ("pass", 2, 0)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is packed") as caught:
        prune_path(path, tmp_path / "out.safetensors", Request(pattern=NMPattern(2, 4)))
    assert "decompress" in str(caught.value)
    assert path.read_bytes() == before
    assert not (tmp_path / "out.safetensors").exists()


def test_float8_and_bfloat16_values(tmp_path):
    weight = torch.tensor([[0.0, 1.0, 0.0, -2.0]] * 4)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        tensors = {key: torch.from_numpy(value) for key, value in packed("a.weight", weight.numpy()).items()}
        tensors["a.weight.compressed"] = tensors["a.weight.compressed"].to(dtype)
        save_torch(tensors, tmp_path / "m.safetensors")
        (layer,) = [layer for layer in open_layers(tmp_path / "m.safetensors") if layer.packed]
        assert layer.weight().astype(np.float32).tolist() == weight.tolist()


def test_a_mask_that_lies(tmp_path):
    path = tmp_path / "m.safetensors"
    parts = packed("a.weight", sparse(8, 16))
    save_file({**parts, "a.weight.compressed": parts["a.weight.compressed"][:, :-1].copy()}, path)
    with pytest.raises(InputError, match="bits are set"):
        verify_path(path)
    for shape in ([8, 1 << 40], [0, 16], [8], [-8, 16]):
        save_file({**parts, "a.weight.shape": np.array(shape)}, path)
        with pytest.raises(InputError, match="does not fit"):
            verify_path(path)
