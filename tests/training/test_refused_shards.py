"""What sparsify refuses: doubles that carry the marks of the real classes, and real DTensors on one process each."""

import types

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify
from nm2trt.training.shards import check_whole_groups


def network():
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def test_zero_3_is_refused_with_a_line_that_says_what_works():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for index, parameter in enumerate(net.parameters()):
        parameter.ds_id, parameter.ds_tensor = index, parameter.detach().flatten()
    with pytest.raises(ConfigError, match=r"parameter 0.weight: DeepSpeed's ZeRO-3 .*fully_shard \(FSDP2\)"):
        sparsify(net, optimizer)


def deepspeed_optimizer(name, module, inner):
    """An object as deepspeed's wrappers are: no torch optimizer, one inside, whose parameters are flat clones."""
    kind = type(name, (), {"step": lambda self: self.optimizer.step(), "__module__": module})
    wrapper = kind()
    wrapper.optimizer = inner
    wrapper.param_groups = inner.param_groups
    return wrapper


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("DeepSpeedZeroOptimizer", "deepspeed.runtime.zero.stage_1_and_2"),
        ("DeepSpeedZeroOptimizer_Stage3", "deepspeed.runtime.zero.stage3"),
        ("BF16_Optimizer", "deepspeed.runtime.bf16_optimizer"),
        ("FP16_Optimizer", "deepspeed.runtime.fp16.fused_optimizer"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_deepspeeds_master_weights_are_refused_by_name(name, module, wrapped):
    net = network()
    flat = torch.cat([parameter.detach().flatten().clone() for parameter in net.parameters()]).requires_grad_()
    optimizer = deepspeed_optimizer(name, module, torch.optim.SGD([flat], lr=0.1))
    if wrapped:  # as accelerate hands it to a Trainer's callbacks
        optimizer = deepspeed_optimizer("DeepSpeedOptimizerWrapper", "accelerate.utils.deepspeed", optimizer)
    with pytest.raises(ConfigError, match=f"{name} steps flat copies .*ZeroRedundancyOptimizer"):
        sparsify(net, optimizer)


def test_deepspeeds_own_adam_steps_the_weights_themselves():
    kind = type("FusedAdam", (torch.optim.Adam,), {"__module__": "deepspeed.ops.adam.fused_adam"})
    net = network()
    sparsifier = sparsify(net, kind(net.parameters(), lr=1e-3), "2:4")
    assert len(sparsifier.patterns()) == 2


def tensor_parallel(rows, columns, processes, axis):
    """What `check_whole_groups` reads of a DTensor, for any number of processes."""
    mesh = types.SimpleNamespace(shape=(processes,), size=lambda _dimension: processes, get_coordinate=lambda: [0])
    weight = torch.empty(rows, columns, device="meta")
    placement = Replicate() if axis is None else Shard(axis)
    return types.SimpleNamespace(shape=weight.shape, dim=weight.dim, placements=(placement,), device_mesh=mesh)


@pytest.mark.parametrize(
    ("columns", "processes", "axis", "m", "cut"),
    [
        (32, 4, 1, 4, None),  # 8 each
        (24, 4, 1, 4, "holds 6 of 24"),
        (24, 4, 1, 2, None),
        (32, 8, 1, 16, "holds 4 of 32"),
        (24, 4, 0, 4, None),  # column-wise: rows are cut, groups are not
        (24, 4, None, 4, None),
        (20, 4, 1, 4, "holds 5 of 20"),
        (12, 4, -1, 4, "holds 3 of 12"),
    ],
)
def test_shards_that_cut_groups_name_the_layer(columns, processes, axis, m, cut):
    weight = tensor_parallel(24, columns, processes, axis)
    if cut is None:
        check_whole_groups("mlp.down.weight", weight, 1, m)
        return
    with pytest.raises(ConfigError, match=rf"layer mlp.down.weight: .*{cut}, which cuts groups of {m}"):
        check_whole_groups("mlp.down.weight", weight, 1, m)
