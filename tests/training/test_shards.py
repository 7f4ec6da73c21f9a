"""Shards in every mesh: four gloo processes against one, checkpoints that reshard, and what is refused on all ranks."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import forked_python

from nm2trt.training.shards import held_indices

WORKER = Path(__file__).with_name("shards_worker.py")
PROCESSES = 4

needs_distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    python, environment = forked_python(os.environ)
    result = subprocess.run(
        [
            *(python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"),
            *(str(WORKER), str(folder)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@needs_distributed
@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        ("fsdp", "one"),
        ("hsdp", "one"),
        ("step hsdp", "step one"),
        ("tensor parallel", "one"),
        ("both", "one"),
        ("copies", "one"),
        ("thin", "thin one"),
        ("uneven", "uneven one"),
    ],
)
def test_every_way_to_shard_trains_and_counts_what_one_process_does(ranks, kind, alone):
    """Weights, W~ + R, R and masks are gathered by their placements alone, and SAD counts every weight once."""
    for found in ranks:
        expected, got = found[alone], found[kind]
        for part in ("weights", "dense", "residuals", "masks"):
            assert got[part].keys() == expected[part].keys()
            for name, value in expected[part].items():
                torch.testing.assert_close(got[part][name], value, rtol=0, atol=1e-9, msg=f"{kind} {part} {name}")
        assert got["sad"] == expected["sad"]
        assert got["flips"] == {layer: flips for layer, _, _, flips in expected["sad"] if layer != "total"}
        assert got["sad"][-1][2] > 0, "no mask moved, so nothing was shown"


@needs_distributed
def test_fsdp2_over_tensor_parallelism_has_strided_shards(ranks):
    assert ranks[0]["both"]["placements"] == ["_StridedShard", "Shard"]


@needs_distributed
def test_a_distributed_checkpoint_is_loaded_into_another_mesh(ranks):
    for found in ranks:
        assert found["resharded"]["same"]
        assert found["from whole"]
        assert found["resharded"]["flips"] == found["fsdp"]["flips"]
        for name, value in found["fsdp"]["dense"].items():
            assert torch.equal(found["resharded"]["dense"][name], value), name


@needs_distributed
def test_a_border_inside_a_group_is_refused_by_name_on_every_rank(ranks):
    said = {found["refused"] for found in ranks}
    assert len(said) == 1
    assert said.pop().startswith("layer 2.weight: sharded along its reduction axis 1")
    assert [found["excluded"] for found in ranks] == [["0.weight"]] * PROCESSES


@needs_distributed
def test_fsdp1_is_refused_with_the_way_on_however_it_is_given(ranks):
    for found in ranks:
        assert len(found["fsdp1"]) == 6
        assert all("FSDP1" in line and "fully_shard" in line for line in found["fsdp1"]), found["fsdp1"]


class Mesh:
    def __init__(self, *shape):
        self.shape = shape

    def size(self, dimension):
        return self.shape[dimension]


class Placed:
    """What `held_indices` reads of a DTensor."""

    def __init__(self, shape, mesh, placements):
        self.shape, self.device_mesh, self.placements = shape, mesh, placements

    def dim(self):
        return len(self.shape)


@needs_distributed
@pytest.mark.parametrize("size", [0, 1, 3, 5, 8, 33])
@pytest.mark.parametrize(("outer", "inner"), [(2, 2), (3, 2), (2, 3), (1, 4)])
def test_the_parts_of_all_processes_are_the_whole(size, outer, inner):
    """Torch's own splitting is the oracle; strided shards too, as FSDP2 makes them over tensor parallelism."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    for placements in ((Shard(0), Shard(0)), (Replicate(), Shard(0)), (_StridedShard(0, split_factor=inner), Shard(0))):
        placed = Placed((size, 4), Mesh(outer, inner), placements)
        parts = {}
        for row in range(outer):
            for column in range(inner):
                expected = torch.arange(size)
                for place, count, placement in zip((row, column), (outer, inner), placements, strict=True):
                    if placement != Replicate():
                        split, _ = placement._split_tensor(expected, count, with_padding=False, contiguous=True)
                        expected = split[place]
                held = held_indices(placed, 0, (row, column))
                assert torch.equal(held, expected), (placements, row, column)
                parts[row, column] = held
        if Replicate() not in placements:
            assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(size))


def test_weights_without_values_are_named():
    from nm2trt.errors import ConfigError
    from nm2trt.training import sparsify

    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    with pytest.raises(ConfigError, match=r"parameter 0\.weight: is on the meta device"):
        sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1))
