"""Whole torch networks, pruned with data: what is found, that each layer sees pruned inputs, that errors hold."""

import copy

import numpy as np
import pytest

from nm2trt.errors import ConfigError, InputError
from nm2trt.pattern import NMPattern, conforms
from nm2trt.prune.calibrated import InputGram, prune_columns

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from nm2trt.prune.calibrated.batch_norm import recalibrate_batch_norm  # noqa: E402
from nm2trt.prune.calibrated.torch_network import prune_network, relative_output_error  # noqa: E402

TWO_OF_FOUR = NMPattern(2, 4)


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build()


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.GELU(),
        nn.Linear(12, 5),
    )


def samples(*shape, count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=generator) for _ in range(count)]
    return lambda: iter(made)


def by_name(results):
    return {result.name: result for result in results}


def test_convolutions_linear_and_what_stays_dense():
    model = seeded(convolutions)
    dense = copy.deepcopy(model)
    batches, held_out = samples(8, 3, 12, 12), samples(8, 3, 12, 12, seed=2)
    seen = []
    results = prune_network(
        model, batches, TWO_OF_FOUR, held_out=held_out, progress=lambda one, at, of: seen.append((one.name, at, of))
    )
    found = by_name(results)
    assert seen == [("3.weight", 1, 3), ("6.weight", 2, 3), ("10.weight", 3, 3)]
    assert "shorter than M" in found["0.weight"].reason
    assert "shorter than M" in found["7.weight"].reason
    assert "classifier" in found["12.weight"].reason
    for name, _, _ in seen:
        result = found[name]
        assert conforms(model.get_parameter(name).detach().numpy(), TWO_OF_FOUR, 1)
        assert 0 < result.error <= result.magnitude_error
        assert result.held_out_error > 0
        assert result.input_rows == (4 * 8 if name == "10.weight" else 4 * 8 * 36)
    for name, parameter in dense.named_parameters():
        if name not in {one for one, _, _ in seen}:
            assert torch.equal(parameter, model.get_parameter(name))
    assert model.training
    assert 0 < relative_output_error(dense, model, held_out) < 1
    assert relative_output_error(dense, dense, held_out) == 0


def test_each_layer_is_pruned_on_inputs_of_the_pruned_network():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)))
    weights = [model[at].weight.detach().numpy().copy() for at in (0, 2)]
    biases = [model[at].bias.detach().numpy() for at in (0, 2)]
    batches = samples(50, 8)
    prune_network(model, batches, TWO_OF_FOUR)
    x = torch.cat(list(batches())).numpy()
    for at, weight, bias in zip((0, 2), weights, biases, strict=True):
        gram = InputGram(weight.shape[1])
        gram.add(x[None])
        wanted = prune_columns(weight[None], gram, TWO_OF_FOUR, method="obs").weights[0]
        np.testing.assert_allclose(model[at].weight.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
        x = np.maximum(x @ wanted.T + bias, 0)


@pytest.mark.parametrize("method", ["obs", "wanda", "magnitude"])
def test_packed_attention_and_its_output_projection(method):
    model = seeded(lambda: nn.TransformerDecoderLayer(16, 2, 32, dropout=0.1, batch_first=True))
    batches = [{"tgt": torch.randn(3, 5, 16), "memory": torch.randn(3, 7, 16)} for _ in range(3)]
    results = prune_network(model, lambda: batches, TWO_OF_FOUR, layer_patterns={"linear2": TWO_OF_FOUR}, method=method)
    self_attention = [one for one in results if one.name == "self_attn.in_proj_weight"]
    crossed = [one for one in results if one.name == "multihead_attn.in_proj_weight"]
    assert [one.rows for one in self_attention] == [None]
    # Queries come from the target, keys and values from the memory: each slice by its own inputs.
    assert [(one.rows, one.input_rows) for one in crossed] == [((0, 16), 45), ((16, 48), 63)]
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert conforms(parameter.detach().numpy(), TWO_OF_FOUR, 1), name
    assert {one.pattern for one in results} == {TWO_OF_FOUR}


def test_encoder_layer_is_read_although_torch_fuses_it():
    model = nn.TransformerEncoder(
        seeded(lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)), 2, enable_nested_tensor=False
    ).eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    results = prune_network(model, samples(3, 5, 16), TWO_OF_FOUR)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert sum(one.pattern is not None for one in results) == 7
    assert not model.training


def test_conv1d_of_transformers_is_pruned_along_its_inputs():
    utilities = pytest.importorskip("transformers.pytorch_utils")
    model = seeded(lambda: nn.Sequential(utilities.Conv1D(12, 8), nn.ReLU(), nn.Linear(12, 4)))
    results = prune_network(model, samples(20, 8), TWO_OF_FOUR)
    assert results[0].shape == (12, 8)
    assert conforms(model[0].weight.detach().numpy(), TWO_OF_FOUR, 0)
    assert results[0].error <= results[0].magnitude_error


@pytest.mark.parametrize(("rank", "size"), [(1, (9,)), (2, (5, 6)), (3, (4, 3, 4))])
def test_convolutions_of_every_rank(rank, size):
    kind = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank]
    model = seeded(lambda: nn.Sequential(kind(8, 6, 3, padding=1, groups=2), nn.ReLU(), kind(6, 2, 1)))
    (first, *_rest) = prune_network(model, samples(2, 8, *size), TWO_OF_FOUR)
    assert first.pattern == TWO_OF_FOUR
    assert first.error <= first.magnitude_error
    assert conforms(model[0].weight.detach().numpy(), TWO_OF_FOUR, 1)


def test_error_of_a_layer_is_that_of_its_outputs():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.Conv2d(6, 2, 1)))
    dense = copy.deepcopy(model)
    batches, held_out = samples(3, 4, 7, 7), samples(3, 4, 7, 7, seed=9)
    result = prune_network(model, batches, TWO_OF_FOUR, held_out=held_out)[0]
    for given, wanted in ((batches, result.error), (held_out, result.held_out_error)):
        x = torch.cat(list(given()))
        with torch.no_grad():
            share = (model[0](x) - dense[0](x)).square().sum() / dense[0](x).square().sum()
        assert float(share) == pytest.approx(wanted, rel=1e-4)


def test_patterns_and_exclusions():
    model = seeded(convolutions)
    patterns = {"10": NMPattern(4, 8), "12": NMPattern(1, 4)}
    results = by_name(
        prune_network(model, samples(4, 3, 12, 12), TWO_OF_FOUR, layer_patterns=patterns, exclude=["3.weight"])
    )
    assert results["3.weight"].reason == "excluded by '3.weight'"
    assert results["10.weight"].pattern == NMPattern(4, 8)
    assert results["12.weight"].pattern == NMPattern(1, 4)
    with pytest.raises(ConfigError, match="no multiple of M = 8"):
        prune_network(model, samples(4, 3, 12, 12), TWO_OF_FOUR, layer_patterns={"12": NMPattern(1, 8)})
    with pytest.raises(ConfigError, match="typo"):
        prune_network(model, samples(4, 3, 12, 12), TWO_OF_FOUR, exclude=["typo"])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.body = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)

    def forward(self, x):
        x = self.body(self.body(self.table(x)).relu()).relu()
        return self.again(x) @ self.table.weight.t()


def test_shared_tied_and_unread_weights():
    model = seeded(Tied)
    batches = [torch.randint(0, 10, (4, 6)) for _ in range(2)]
    results = prune_network(model, lambda: batches, TWO_OF_FOUR)
    assert {one.reason for one in results if one.name == "table.weight"} == {
        "shared with an embedding, whose rows are looked up"
    }
    found = by_name(results)
    assert found["body.weight"].input_rows == 2 * 2 * 24
    assert "no product" in found["never.weight"].reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_widths(dtype):
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))).to(dtype)
    batches = [torch.randn(20, 16).to(dtype)]
    result = prune_network(model, lambda: batches, TWO_OF_FOUR)[0]
    assert result.error <= result.magnitude_error
    assert model[0].weight.dtype == dtype
    assert conforms(model[0].weight.detach().double().numpy(), TWO_OF_FOUR, 1)


def test_same_samples_give_the_same_bits():
    first, second = seeded(convolutions), seeded(convolutions)
    for model in (first, second):
        prune_network(model, samples(4, 3, 12, 12), TWO_OF_FOUR)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "there is no sample"),
        ([torch.zeros(2, 5, 12, 12)], "cannot run on batch 0"),
        ([torch.zeros(2, 3, 12, 12), torch.full((2, 3, 12, 12), torch.nan)], "NaN or infinite"),
    ],
)
def test_bad_samples_leave_the_network_as_it_was(batches, words):
    model = seeded(convolutions)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=words):
        prune_network(model, lambda: batches, TWO_OF_FOUR)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.training


def test_an_error_in_a_deep_layer_undoes_those_before():
    class Bad(nn.Module):
        def forward(self, x):
            return x / 0

    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), Bad(), nn.Linear(8, 8), nn.Linear(8, 8)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"3\.weight"):
        prune_network(model, samples(4, 8), TWO_OF_FOUR)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_to_prune_is_said():
    with pytest.raises(InputError, match="no weight can be pruned to 2:4"):
        prune_network(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), samples(4, 3), TWO_OF_FOUR)


def test_batch_norm_is_measured_again():
    model = seeded(convolutions).eval()
    reference = copy.deepcopy(model)
    batches = samples(16, 3, 12, 12)
    assert recalibrate_batch_norm(model, batches) == 2
    with torch.no_grad():
        outputs = [reference[0](x) for x in batches()]
    means = torch.stack([x.mean((0, 2, 3)) for x in outputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert model[1].momentum == reference[1].momentum
    assert not any(module.training for module in model.modules())
    assert torch.equal(model[1].weight, reference[1].weight)
    assert recalibrate_batch_norm(nn.Linear(2, 2), batches) == 0


@pytest.mark.parametrize("bad", [[], [torch.full((4, 3, 12, 12), torch.nan)], [torch.zeros(1, 2)]])
def test_batch_norm_stays_on_bad_samples(bad):
    model = seeded(convolutions)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError):
        recalibrate_batch_norm(model, lambda: bad)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model[1].momentum == 0.1
