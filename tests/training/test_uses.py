"""What an operator is given for a weight, and which Linear makes the output: by use, not by name."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

from nm2trt.training import sparsify
from nm2trt.training.flow import output_linears


def sparsified(model, pattern="2:4", **options):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sparsify(model, torch.optim.SGD(parameters, lr=0.1), pattern, **options)


def found(model, **options):
    return {entry.name: (entry.pattern, entry.reason) for entry in sparsified(model, **options).report()}


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-6)
        return self._conv_forward(x, w, self.bias)


class Centered(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class ThroughTheConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight + 0.1, bias)


class Noisy(nn.Linear):
    """A product written by hand, with dense noise on the weight."""

    def forward(self, x):
        return x @ (self.weight + 0.01 * torch.randn_like(self.weight)).mT + self.bias


class Stepping(nn.Linear):
    """Counts its calls and keeps a running mean: a trial run must leave no trace."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.calls = 0
        self.register_buffer("mean", torch.zeros(sizes[0]))

    def forward(self, x):
        self.calls += 1
        self.seen = x
        self.mean += x.mean(0)
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (Standardized(16, 16, 3), "conv2d"),
        (ThroughTheConvolution(16, 16, 3, dilation=2), "conv2d"),
        (Centered(16, 16), "linear"),
        (Noisy(16, 16), "matmul"),
        (Stepping(16, 16), "linear"),
    ],
)
def test_a_layer_that_computes_its_weight_stays_dense_from_the_start(layer, operator):
    before = layer.weight.detach().clone()
    model = nn.ModuleDict({"odd": layer, "plain": nn.Linear(16, 16), "head": nn.Linear(16, 4)})
    generator = torch.get_rng_state()
    report = found(model)
    assert report["odd.weight"][0] is None
    assert "computes its weight in the forward pass" in report["odd.weight"][1]
    assert operator in report["odd.weight"][1]
    assert report["plain.weight"][0] == "2:4"
    assert torch.equal(layer.weight.detach(), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert layer.training


def test_the_trial_leaves_no_trace_in_the_module():
    layer = Stepping(16, 16)
    found(nn.ModuleDict({"odd": layer, "plain": nn.Linear(16, 16), "head": nn.Linear(16, 4)}))
    assert layer.calls == 0
    assert not hasattr(layer, "seen")
    assert not layer.mean.any()


class Equalized(nn.Linear):
    """Scaled at run time, as in ProGAN: every zero stays one."""

    def forward(self, x):
        return F.linear(x, self.weight * (2 / self.in_features) ** 0.5, self.bias)


class Padded(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Named(nn.Linear):
    """A forward that cannot be tried alone proves nothing against the layer."""

    def forward(self, x, *, scale):
        return F.linear(x, self.weight, self.bias) * scale


class ByHand(nn.Linear):
    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.t())


@pytest.mark.parametrize("layer", [Equalized(16, 16), Padded(16, 16, 3), Named(16, 16), ByHand(16, 16), ByHand(16, 8)])
def test_a_forward_of_ones_own_that_keeps_the_zeros_is_sparse(layer):
    model = nn.ModuleDict({"own": layer, "head": nn.Linear(16, 4)})
    assert found(model)["own.weight"][0] == "2:4"


class Autoencoder(nn.Module):
    """The encoder's weight is read transposed by the decoder: groups along one axis are none along the other."""

    def __init__(self):
        super().__init__()
        self.encoder, self.middle, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(16, 4)

    def forward(self, x):
        h = self.middle(torch.relu(self.encoder(x)))
        return self.head(F.linear(h, self.encoder.weight.t()))


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        tokens = F.embedding(x.abs().long().clamp(max=15), self.project.weight)
        return self.head(self.body(tokens.mean(1)))


@pytest.mark.parametrize(("model", "name"), [(Autoencoder(), "encoder.weight"), (Lookup(), "project.weight")])
def test_a_weight_that_is_read_otherwise_is_found_on_an_example(model, name):
    report = found(model, example_inputs=torch.randn(2, 16))
    assert report[name][0] is None
    assert "reads it otherwise, too" in report[name][1]
    assert sum(pattern is not None for pattern, _ in report.values()) >= 1


def test_without_an_example_the_first_forward_pass_is_watched_once_and_says_so():
    model = Autoencoder()
    sparsifier = sparsified(model)
    assert "encoder.weight" in sparsifier.patterns()
    with pytest.warns(UserWarning, match="encoder.weight is not sparse where it is used"):
        model(torch.randn(2, 16))
    assert "encoder.weight" not in sparsifier.patterns()
    report = {entry.name: (entry.pattern, entry.reason) for entry in sparsifier.report()}
    assert report["encoder.weight"] == (None, "the forward pass reads it otherwise, too, by linear")
    assert report["middle.weight"][0] == "2:4"
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 16))


def test_the_watch_ends_with_a_forward_pass_that_raises_and_no_copy_takes_it_along():
    model = Autoencoder()
    sparsified(model)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)(torch.randn(2, 16))
    twin(torch.randn(2, 16))
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3))
    assert not model._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x):
        if self.training:
            x = F.dropout(x, 0.1)
        return torch.log_softmax(self.head(self.body(x)), -1)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.coarse, self.body, self.fine = nn.Linear(16, 4), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return {"coarse": self.coarse(h), "fine": self.fine(h)}


class Branching(nn.Module):
    """Control flow on values: cannot be traced, so a Linear of a usual name is taken, else the last one defined."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(16, 4), nn.Linear(16, 16)

    def forward(self, x):
        return self.head(self.body(x)) if x.sum() > 0 else self.head(x)


class FunctionalHead(nn.Module):
    """The logits come from a parameter of the model itself, so no Linear is the classifier."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Parameter(torch.randn(4, 16))
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return F.linear(self.second(torch.relu(self.first(x))), self.classes)


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (HeadFirst(), ["head"]),
        (TwoHeads(), ["coarse", "fine"]),
        (Branching(), None),
        (FunctionalHead(), []),
        (nn.Sequential(nn.Linear(16, 16), nn.Conv1d(1, 1, 1)), []),
    ],
)
def test_the_classifier_is_what_makes_the_output(model, heads):
    """Definition order says nothing; where nothing can be traced it is what is left."""
    assert output_linears(model) == heads
    report = found(model, layer_patterns={} if heads is not None else {"body": "2:4"})
    dense = {name for name, (_, reason) in report.items() if "classifier" in reason}
    assert dense == {f"{head}.weight" for head in (heads if heads is not None else ["head"])}


def test_naming_one_of_several_heads_makes_that_one_sparse():
    report = found(TwoHeads(), layer_patterns={"fine": "2:4"})
    assert report["fine.weight"][0] == "2:4"
    assert report["coarse.weight"][1] == "a classifier, one of several outputs, stays dense unless it is named"


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 16, 16))

    def forward(self, x):
        return torch.einsum("bi,eio->beo", x, self.w)


def pruned():
    layer = nn.Linear(16, 16)
    nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(16, 16))


@pytest.mark.parametrize(
    ("layer", "name", "words"),
    [
        (nn.LSTM(16, 16), "layer.weight_ih_l0", "LSTM multiplies by it at every step"),
        (nn.GRUCell(16, 16), "layer.weight_hh", "GRUCell multiplies by it"),
        (nn.Embedding(16, 16), "layer.weight", "a table to look up"),
        (nn.Bilinear(16, 16, 16), "layer.weight", "two inputs at once"),
        (Experts(), "layer.w", "Experts uses w (3x16x16) in a forward of its own"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
            "layer.parametrizations.weight.original1",
            "WeightNorm computes the layer's weight",
        ),
        (
            nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
            "layer.parametrizations.weight.original",
            "SpectralNorm computes the layer's weight",
        ),
        (old_weight_norm(), "layer.weight_v", "weight_norm computes weight"),
        (pruned(), "layer.weight_orig", "torch.nn.utils.prune"),
    ],
)
def test_every_dense_weight_has_a_true_reason(layer, name, words):
    model = nn.ModuleDict({"layer": layer, "body": nn.Linear(16, 16), "head": nn.Linear(16, 4)})
    pattern, reason = found(model)[name]
    assert pattern is None
    assert words in reason


def test_a_compiled_and_a_wrapped_model_are_told_by_their_own_names():
    model = HeadFirst()
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    sparsifier = sparsified(compiled)
    compiled(torch.randn(2, 16))
    for wrapper, prefix in ((compiled, "_orig_mod."), (nn.ModuleDict({"module": model}), "module."), (model, "")):
        dense = sparsifier.dense_state_dict(wrapper)
        assert list(dense) == [prefix + name for name in before]
        for name, value in before.items():
            assert torch.equal(dense[prefix + name], value), name
    from nm2trt.errors import ConfigError

    with pytest.raises(ConfigError, match=r"does not hold the sparse weight of body\.0\.weight"):
        sparsifier.dense_state_dict(copy.deepcopy(model))


def test_compiled_after_sparsify_it_runs_as_one_graph():
    model = HeadFirst()
    sparsified(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.randn(2, 16)).shape == (2, 4)


class BranchingWithoutNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(16, 4), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = self.middle(self.first(x))
        return self.last(h) if h.sum() > 0 else self.last(2 * h)


def test_where_nothing_can_be_traced_an_example_shows_the_classifier():
    report = found(BranchingWithoutNames(), example_inputs=torch.randn(2, 16))
    assert {name for name, (pattern, _) in report.items() if pattern is None} == {"last.weight"}
    assert "read last in the example" in report["last.weight"][1]
    assert "last Linear defined" in found(BranchingWithoutNames())["first.weight"][1]


class ByEinsum(nn.Linear):
    def __init__(self, shift):
        super().__init__(16, 16)
        self.shift = shift

    def forward(self, x):
        return torch.einsum("...k,ok->...o", x, self.weight - self.shift if self.shift else self.weight)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_einsum_is_a_product_too(shift):
    pattern, reason = (
        found(nn.Sequential(ByEinsum(shift), nn.ReLU(), nn.Linear(16, 4)))["0.weight"]
        if not shift
        else (found(nn.Sequential(ByEinsum(shift), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)))["0.weight"])
    )
    assert (pattern, "einsum is given a dense one" in reason) == (("2:4", False) if not shift else (None, True))


class ElsewhereComputed(nn.Module):
    """The model itself centers the weight of a module that it never calls."""

    def __init__(self, shift):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.shift = shift

    def forward(self, x):
        weight = self.second.weight
        return self.head(F.linear(torch.relu(self.first(x)), weight - weight.mean() if self.shift else 2 * weight))


@pytest.mark.parametrize("shift", [False, True])
def test_a_weight_computed_outside_of_its_module_is_seen(shift):
    model = ElsewhereComputed(shift)
    sparsifier = sparsified(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(torch.randn(16, 16)).sum().backward()
    said = [str(one.message) for one in caught]
    assert [("second.weight" in one, "computes another weight from it: linear reads 4" in one) for one in said] == (
        [(True, True)] if shift else []
    )
    assert set(sparsifier.patterns()) == ({"first.weight"} if shift else {"first.weight", "second.weight"})
