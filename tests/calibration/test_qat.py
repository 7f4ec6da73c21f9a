"""Quantization-aware fine-tuning: the mask holds, the score comes back, and the exported Q/DQ computes the same."""

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from nm2trt.calibration.qat import QuantAware, fake_quantized_weight, qdq_from_quant_aware
from nm2trt.calibration.sessions import Runner
from nm2trt.calibration.settings import Settings
from nm2trt.errors import ConfigError, InputError
from nm2trt.export import onnx_bytes, onnx_from_module
from nm2trt.pattern import NMPattern, conforms
from nm2trt.training import sparsify


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def fit(module, x, y, optimizer, epochs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    module.eval()


def loss(module, x, y):
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(x), y))


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)


@pytest.fixture
def trained(digits):
    torch.manual_seed(0)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    sparsifier = sparsify(module, optimizer, pattern="2:4", method="asp")
    fit(module, digits[0][:1400], digits[1][:1400], optimizer, 4)
    return module, optimizer, sparsifier


def test_fine_tuning_holds_the_mask_and_the_export_computes_what_was_trained(trained, digits, tmp_path):
    module, optimizer, _ = trained
    x, y = digits
    masks = {name: weight != 0 for name, weight in module.named_parameters() if weight.ndim > 1}
    # Ranges that clip far too much, so that there is something to win back.
    aware = QuantAware(module, x[:256].split(64), method="percentile:80")
    assert aware.left_out == []
    before = loss(module, x[:1400], y[:1400])
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    fit(module, x[:1400], y[:1400], optimizer, 2)
    assert loss(module, x[:1400], y[:1400]) < 0.8 * before
    for name, weight in module.named_parameters():
        if name == "2.weight":
            assert conforms(weight.detach().numpy(), NMPattern(2, 4), 1)
            assert not weight[~masks[name]].any()
            assert not fake_quantized_weight(weight)[~masks[name]].any()
    with torch.no_grad():
        expected = module(x[1400:1500]).numpy()
    aware.remove()
    with torch.no_grad():
        assert not np.allclose(module(x[1400:1500]).numpy(), expected, atol=1e-3)
    float_model = exported(module, tmp_path / "float.onnx")
    np.save(tmp_path / "x.npy", x[:64].numpy())
    out = tmp_path / "int8.onnx"
    document = qdq_from_quant_aware(aware, float_model, out, Settings(data=str(tmp_path / "x.npy")))
    assert document.verdict == "pass"
    assert all(layer.int8 for layer in document.layers)
    found = Runner(onnx.load(out), "").run({"input": x[1400:1500].numpy()})[0]
    # Batch norm is folded after training: per-channel scales take the factor, but rounding may fall to the other side.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def exported(module, path):
    path.write_bytes(onnx_bytes(onnx_from_module(module, (1, 8, 8))))
    return path


def test_nothing_is_renamed_and_everything_comes_back(trained, digits):
    module, _, _ = trained
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    keys = list(module.state_dict())
    with torch.no_grad():
        plain = module(digits[0][:8])
    aware = QuantAware(module, digits[0][:64].split(32), exclude=["6"])
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before
    assert list(module.state_dict()) == keys
    assert set(aware.ranges) == {"0", "2"}
    with torch.no_grad():
        assert not torch.equal(module(digits[0][:8]), plain)
    aware.remove()
    with torch.no_grad():
        assert torch.equal(module(digits[0][:8]), plain)


def test_layers_that_are_not_called_are_told():
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    aware = QuantAware(module, [torch.randn(2, 4, 8)])
    assert "self_attn.out_proj" in aware.left_out
    assert set(aware.ranges) <= {"linear1", "linear2"}


def test_mistakes_cost_one_line(digits):
    with pytest.raises(InputError, match="no batch"):
        QuantAware(network(), [])
    with pytest.raises(ConfigError, match="is no layer"):
        QuantAware(network(), [digits[0][:4]], exclude=["nine"])
    with pytest.raises(InputError, match="constant"):
        QuantAware(network(), [torch.zeros(4, 1, 8, 8)])
    with pytest.raises(InputError, match="NaN"):
        QuantAware(network(), [torch.full((4, 1, 8, 8), torch.nan)])
