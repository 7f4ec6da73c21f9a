import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training import nm_mask, sparsify

LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-2
STEPS = 10


class Net(nn.Module):
    """A convolution and a linear layer whose reduction axes divide by 16, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 2 * 2, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.fc(torch.tanh(self.conv(x)).flatten(1))))


def forward_with(weights, x):
    x = torch.tanh(F.conv2d(x, weights["conv.weight"], weights["conv.bias"], padding=1)).flatten(1)
    x = torch.tanh(F.linear(x, weights["fc.weight"], weights["fc.bias"]))
    return F.linear(x, weights["head.weight"], weights["head.bias"])


def batches_of(steps, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield (
            torch.randn(6, 16, 2, 2, dtype=torch.float64, generator=generator),
            torch.randint(0, 4, (6,), generator=generator),
        )


def slow_keep(weight, pattern):
    """E of the paper by explicit loops over groups along axis 1."""
    keep = np.zeros(weight.shape)
    for place in np.ndindex(weight.shape[0], *weight.shape[2:]):
        row = weight[(place[0], slice(None), *place[1:])]
        for start in range(0, len(row), pattern.m):
            best = sorted(range(start, start + pattern.m), key=lambda i: (-abs(row[i]), i))[: pattern.n]
            for index in best:
                keep[(place[0], index, *place[1:])] = 1.0
    return keep


def paper_reference(net, pattern, decay, steps):
    """W <- W - lr * (g(W~) + decay * (1 - E) * W) with momentum and weight decay on W, in float64 numpy.

    Only g, the gradient of the task loss at the sparse weights, comes from torch.
    """
    dense = {name: value.detach().numpy().copy() for name, value in net.named_parameters()}
    velocity = dict.fromkeys(dense)
    sparse_names = ("conv.weight", "fc.weight")
    for x, y in batches_of(steps):
        keep = {name: slow_keep(dense[name], pattern) for name in sparse_names}
        seen = {
            name: torch.tensor(value * keep[name] if name in keep else value, requires_grad=True)
            for name, value in dense.items()
        }
        loss = F.cross_entropy(forward_with(seen, x), y)
        gradients = torch.autograd.grad(loss, list(seen.values()))
        for (name, weight), gradient in zip(list(dense.items()), gradients, strict=True):
            g = gradient.numpy().copy()
            if name in keep:
                g += decay * (1.0 - keep[name]) * weight
            g += WEIGHT_DECAY * weight
            velocity[name] = g if velocity[name] is None else MOMENTUM * velocity[name] + g
            dense[name] = weight - LR * velocity[name]
    return dense, {name: slow_keep(dense[name], pattern) for name in sparse_names}


def train(net, optimizer, steps):
    for x, y in batches_of(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def sgd(net, **more):
    return torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **more)


@pytest.mark.parametrize(
    ("text", "method", "decay"),
    [
        *((text, "sr-ste", 2e-4) for text in ("2:4", "1:4", "2:8", "4:8", "1:16")),
        ("2:4", "sr-ste", 2e-1),
        ("1:16", "sr-ste", 2e-1),
        ("2:4", "ste", 0.0),
    ],
)
def test_ten_steps_equal_the_papers_update_in_float64(text, method, decay):
    torch.manual_seed(0)
    net = Net().double()
    pattern = NMPattern.parse(text)
    dense, keep = paper_reference(copy.deepcopy(net), pattern, decay, STEPS)

    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, text, method, decay=decay)
    train(net, optimizer, STEPS)

    assert set(sparsifier.masks()) == {"conv.weight", "fc.weight"}
    ours = sparsifier.dense_state_dict(net)
    for name, expected in dense.items():
        np.testing.assert_allclose(ours[name].numpy(), expected, rtol=0, atol=1e-9, err_msg=name)
    for name, mask in sparsifier.masks().items():
        np.testing.assert_array_equal(mask.numpy(), keep[name].astype(bool), err_msg=name)
        np.testing.assert_allclose(
            net.state_dict()[name].numpy(), dense[name] * keep[name], rtol=0, atol=1e-9, err_msg=name
        )


def test_decay_matters_in_that_comparison():
    """The reference is not blind to lambda: with another one it disagrees by far more than 1e-9."""
    torch.manual_seed(0)
    net = Net().double()
    dense, _ = paper_reference(copy.deepcopy(net), NMPattern(2, 4), 2e-4, STEPS)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", "sr-ste", decay=4e-4)
    train(net, optimizer, STEPS)
    difference = np.abs(sparsifier.dense_state_dict(net)["fc.weight"].numpy() - dense["fc.weight"]).max()
    assert difference > 1e-7


@pytest.mark.parametrize("fast", [{"foreach": True}, {"fused": True}, {"nesterov": True}])
def test_optimizer_variants_agree_with_the_plain_loop(fast):
    torch.manual_seed(0)
    plain, other = Net().double(), None
    other = copy.deepcopy(plain)
    weights = []
    nesterov = {"nesterov": True} if "nesterov" in fast else {}
    for net, options in ((plain, {"foreach": False, **nesterov}), (other, fast)):
        optimizer = sgd(net, **options)
        sparsify(net, optimizer, "2:4", "sr-ste", decay=1e-2)
        train(net, optimizer, STEPS)
        weights.append(net.state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=1e-12)


def test_fused_step_with_scaled_gradients_unscales_the_decay_too():
    """GradScaler hands a fused optimizer scaled gradients and the scale."""
    torch.manual_seed(0)
    plain, scaled = Net().double(), None
    scaled = copy.deepcopy(plain)
    scale = torch.tensor(1024.0)
    results = []
    for net, factor in ((plain, None), (scaled, scale)):
        optimizer = sgd(net, fused=True)
        sparsify(net, optimizer, "2:4", "sr-ste", decay=1e-2)
        if factor is not None:
            optimizer.grad_scale = factor
            optimizer.found_inf = torch.zeros(())
        for x, y in batches_of(4):
            optimizer.zero_grad()
            (F.cross_entropy(net(x), y) * (1.0 if factor is None else float(factor))).backward()
            optimizer.step()
        results.append(net.state_dict())
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-9)


def test_a_step_that_the_fused_kernel_skips_changes_nothing():
    torch.manual_seed(0)
    net = Net().double()
    optimizer = sgd(net, fused=True)
    sparsifier = sparsify(net, optimizer, "2:4", "sr-ste")
    train(net, optimizer, 2)
    before = copy.deepcopy(net.state_dict())
    residual = {name: value.clone() for name, value in sparsifier.residuals().items()}
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.ones(())
    train(net, optimizer, 1)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in sparsifier.residuals().items():
        assert torch.equal(value, residual[name]), name


def test_accumulating_micro_batches_does_not_grow_the_decay():
    torch.manual_seed(0)
    whole, parts = Net().double(), None
    parts = copy.deepcopy(whole)
    results = []
    for net, pieces in ((whole, 1), (parts, 3)):
        optimizer = sgd(net)
        sparsify(net, optimizer, "2:4", "sr-ste", decay=1e-1)
        for x, y in batches_of(5):
            optimizer.zero_grad()
            for x_part, y_part in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (F.cross_entropy(net(x_part), y_part) / pieces).backward()
            optimizer.step()
        results.append(net.state_dict())
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-12)


def test_weights_conform_after_every_step_and_split_exactly():
    torch.manual_seed(0)
    net = Net()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "1:4")
    for x, y in batches_of(6):
        optimizer.zero_grad()
        F.cross_entropy(net(x.float()), y).backward()
        optimizer.step()
        for name, weight in (("conv.weight", net.conv.weight), ("fc.weight", net.fc.weight)):
            kept, residual = weight.detach(), sparsifier.residuals()[name]
            assert ((kept != 0) & (residual != 0)).sum() == 0
            assert torch.equal(sparsifier.masks()[name], nm_mask(kept + residual, NMPattern(1, 4), 1))
            groups = (kept != 0).unflatten(1, (-1, 4)).sum(2)
            assert groups.max() <= 1
            assert groups.sum() > 0


def test_dense_method_changes_nothing_but_records():
    torch.manual_seed(0)
    free, watched = Net().double(), None
    watched = copy.deepcopy(free)
    optimizer = sgd(free)
    train(free, optimizer, STEPS)
    optimizer = sgd(watched)
    sparsifier = sparsify(watched, optimizer, "2:4", "dense")
    train(watched, optimizer, STEPS)
    for name, value in free.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert sparsifier.record_sad().total.flips > 0
    assert sparsifier.patterns() == {}


def test_asp_holds_the_first_mask():
    torch.manual_seed(0)
    net = Net().double()
    optimizer = sgd(net)
    train(net, optimizer, 2)  # momentum that would push pruned weights away from zero
    first = nm_mask(net.fc.weight, NMPattern(2, 4), 1)
    sparsifier = sparsify(net, optimizer, "2:4", "asp")
    train(net, optimizer, STEPS)
    assert torch.equal(sparsifier.masks()["fc.weight"], first)
    assert net.fc.weight.detach()[~first].abs().max() == 0
    assert sparsifier.record_sad().total.start == 0


def test_freeze_holds_the_masks_from_there_on():
    torch.manual_seed(0)
    net = Net().double()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4")
    train(net, optimizer, 3)
    sparsifier.freeze_masks()
    masks = sparsifier.masks()
    train(net, optimizer, 5)
    for name, mask in sparsifier.masks().items():
        assert torch.equal(mask, masks[name])
        assert net.state_dict()[name][~mask].abs().max() == 0


def test_sad_counts_mask_bits_like_a_loop_over_them():
    torch.manual_seed(0)
    net = Net().double()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=0.5)
    masks = [sparsifier.masks()]
    records = []
    for _ in range(4):
        train(net, optimizer, 1)
        masks.append(sparsifier.masks())
        if len(masks) % 2:  # record every second step
            records.append(sparsifier.record_sad())

    def differing(one, two, name):
        return sum(a != b for a, b in zip(one[name].flatten().tolist(), two[name].flatten().tolist(), strict=True))

    for record, last, now in ((records[0], masks[0], masks[2]), (records[1], masks[2], masks[4])):
        for layer in record.layers:
            assert layer.previous == differing(last, now, layer.layer)
            assert layer.start == differing(masks[0], now, layer.layer)
    for layer in records[1].layers:
        steps = [differing(masks[i], masks[i + 1], layer.layer) for i in range(4)]
        assert layer.flips == sum(steps)
        assert layer.weights == masks[0][layer.layer].numel()
    assert records[1].total.flips == sum(layer.flips for layer in records[1].layers)
    assert records[1].total.flips > 0


def test_state_goes_through_a_resume_bit_for_bit():
    torch.manual_seed(0)
    net = Net().double()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4")
    data = list(batches_of(8))

    def steps(net, optimizer, part):
        for x, y in part:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    steps(net, optimizer, data[:4])
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    steps(net, optimizer, data[4:])

    other = Net().double()
    other.load_state_dict(saved[0])
    other_optimizer = sgd(other)
    resumed = sparsify(other, other_optimizer, "2:4")
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    steps(other, other_optimizer, data[4:])
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert resumed.record_sad() == sparsifier.record_sad()


def test_state_of_another_pattern_is_refused():
    net = Net()
    saved = sparsify(net, sgd(net), "2:4").state_dict()
    with pytest.raises(ConfigError, match="other sparse layers"):
        sparsify(net, sgd(net), "1:4").load_state_dict(saved)
    with pytest.raises(ConfigError, match="'sr-ste', this run of 'ste'"):
        sparsify(net, sgd(net), "2:4", "ste").load_state_dict(saved)


def test_remove_leaves_a_plain_optimizer():
    net = Net()
    optimizer = sgd(net)
    sparsify(net, optimizer, "2:4").remove_hooks()
    before = (net.fc.weight == 0).sum()
    for x, y in batches_of(2):
        F.cross_entropy(net(x.float()), y).backward()
        optimizer.step()
    assert (net.fc.weight == 0).sum() < before


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ConfigError, match=r"does not own conv\.weight"):
        sparsify(Net(), sgd(Net()), "2:4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"decay": -1.0}, "negative"),
        ({"pattern": "4:2"}, "4:2 keeps"),
        ({"pattern": "1:64"}, "no layer can be sparse"),
        ({"layer_patterns": {"nope.*": "1:4"}}, "no layer matches 'nope"),
        ({"exclude": ["nope"]}, "no layer matches 'nope'"),
        ({"layer_patterns": {"conv": "1:5"}}, "layer conv: reduction axis of 16 is no multiple of M = 5"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    net = Net()
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        sparsify(net, sgd(net), **options)
