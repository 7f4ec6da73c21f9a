import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nm2trt.pattern import NMPattern
from nm2trt.training.checkpoint import checkpoint_bytes

STATE = {
    "conv.weight": torch.arange(16.0).reshape(2, 8),
    "odd": torch.arange(3, dtype=torch.int64),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "view": torch.arange(6.0).reshape(2, 3).t(),
}


def test_other_tools_read_the_same_tensors_and_the_metadata(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(checkpoint_bytes(STATE, {"conv.weight": NMPattern(2, 4)}, "sr-ste"))
    found = load_file(path)
    assert set(found) == set(STATE)
    for name, value in STATE.items():
        assert torch.equal(found[name], value)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["nm2trt.method"] == "sr-ste"
    assert json.loads(metadata["nm2trt.patterns"]) == {"conv.weight": "2:4"}


def test_equal_content_gives_equal_bytes():
    patterns = {f"layer{i}": NMPattern(1, 4) for i in range(20)}
    backwards = dict(reversed(patterns.items()))
    assert len({checkpoint_bytes(STATE, some, "ste") for some in (patterns, backwards) for _ in range(10)}) == 1


@pytest.mark.parametrize("change", ["method", "weight"])
def test_other_content_gives_other_bytes(change):
    state = {**STATE, "odd": STATE["odd"] + 1} if change == "weight" else STATE
    method = "ste" if change == "method" else "dense"
    assert checkpoint_bytes(state, {}, method) != checkpoint_bytes(STATE, {}, "dense")
