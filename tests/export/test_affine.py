"""The oracle is torch with the frozen BatchNorm as it stands."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from run_folders import prune_slowly
from torch import nn

from nm2trt.export import onnx_bytes, onnx_from_module

SHAPE = (4, 9, 9)


def frozen(channels):
    norm = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d(channels)
    norm.weight.uniform_(-1.5, 1.5)
    norm.bias.uniform_(-1, 1)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.2, 2)
    return norm


class Block(nn.Module):
    """Two frozen norms; the second convolution is also read before its norm where `branch` is set."""

    def __init__(self, *, bias, branch, groups=1):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, bias=bias, groups=groups)
        self.norm1 = frozen(8)
        self.second = nn.Conv2d(8, 12, 1, bias=False)
        self.norm2 = frozen(12)
        self.branch = branch

    def forward(self, x):
        y = self.second(torch.relu(self.norm1(self.first(x))))
        normed = torch.relu(self.norm2(y))
        return torch.cat([normed, y], 1) if self.branch else normed


def exported(module, precision="fp32"):
    return onnx.load_from_string(onnx_bytes(onnx_from_module(module, SHAPE, precision=precision)))


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("bias", "groups"), [(True, 1), (False, 1), (False, 2)])
@pytest.mark.parametrize("branch", [False, True])
def test_a_frozen_norm_goes_into_its_convolution(bias, groups, branch):
    torch.manual_seed(0)
    module = Block(bias=bias, branch=branch, groups=groups).eval()
    with torch.no_grad():
        module.second.weight.copy_(prune_slowly(module.second.weight))
    model = exported(module)
    # A convolution that is read before its norm must keep it.
    assert operators(model).count("Mul") == operators(model).count("Add") == (1 if branch else 0)
    x = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": x})[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = module.second.weight.detach().numpy() == 0
    assert zeros.mean() == 0.5
    assert np.array_equal(tensors["second.weight"] == 0, zeros)
    scaled = (
        module.first.weight.detach()
        * (module.norm1.weight * (module.norm1.running_var + module.norm1.eps).rsqrt())[:, None, None, None]
    )
    assert np.allclose(tensors["first.weight"], scaled.numpy(), rtol=1e-6, atol=0)


def test_the_fold_is_done_before_weights_are_rounded():
    """1e-6 and 1e6, its statistics, are nothing and infinity in float16; their product is 1. The last is the output."""
    module = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), frozen(8)).eval()
    with torch.no_grad():
        module[0].weight.fill_(300.0)
        module[1].running_var.fill_(1e-12)
        module[1].eps = 0.0
        module[1].weight.fill_(1e-6)
    tensors = {one.name: numpy_helper.to_array(one) for one in exported(module, "fp16").graph.initializer}
    assert np.allclose(tensors["0.weight"].astype(np.float32), 300.0, rtol=1e-3)
    assert sorted(tensors) == ["0.bias", "0.weight"]


def test_what_is_not_one_number_for_each_channel_stays():
    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, bias=False)
            self.register_buffer("rows", torch.rand(1, 1, 7, 1))

        def forward(self, x):
            return torch.relu(self.conv(x) * self.rows)

    assert "Mul" in operators(exported(Positional().eval()))
