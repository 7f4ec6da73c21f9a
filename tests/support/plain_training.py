"""A small network trained by hand, in float64, for tests of what happens around its steps."""

import torch
import torch.nn.functional as F
from torch import nn

from nm2trt.training import sparsify

WEIGHTS = ("0.weight", "2.weight")


def mlp(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def batches_of(count, seed=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 16, dtype=torch.float64, generator=generator).to(dtype),
            torch.randint(0, 4, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def one_step(net, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def most(weight):
    """Most non-zeros in four neighbors along axis 1, one group at a time."""
    rows = weight.detach().movedim(1, -1).reshape(-1, weight.shape[1]).tolist()
    return max(sum(value != 0 for value in row[k : k + 4]) for row in rows for k in range(0, len(row), 4))


def started(*, steps=3, lr=0.2, dtype=torch.float64, **options):
    net = mlp(dtype=dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5)
    sparsifier = sparsify(net, optimizer, "2:4", **{"decay": 1e-2, **options})
    for x, y in batches_of(steps, dtype=dtype):
        one_step(net, optimizer, x, y)
    return net, optimizer, sparsifier


def hold_still(optimizer):
    """Steps that change nothing, so that what a step finds stays to be seen."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0


def assert_split(net, sparsifier):
    for name, residual in sparsifier.residuals().items():
        weight = net.get_parameter(name).detach()
        assert not ((weight != 0) & (residual != 0)).any()
        assert most(weight) <= 2


DECAY = 5e-2


def plain_run(make=lambda net: torch.optim.SGD(net.parameters(), lr=0.1), steps=5, **options):
    net = mlp()
    optimizer = make(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY, **options)
    for x, y in batches_of(steps):
        one_step(net, optimizer, x, y)
    return sparsifier.dense_weights()


def assert_equal(one, two, tolerance=0.0):
    for name in WEIGHTS:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def by_copy(net, state):
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(state[name])


def by_mul(net, factor):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)


def clamp(net):
    for parameter in net.parameters():
        parameter.data.clamp_(-0.05, 0.05)


def revive_some(net):
    with torch.no_grad():
        net[0].weight[:, ::4].add_(0.5)


class PlainLookahead:
    """Owns no parameters of its own."""

    def __init__(self, inner, k=2):
        self.inner, self.k, self.count = inner, k, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    def zero_grad(self):
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self):
        self.inner.step()
        self.count += 1
        if self.count % self.k == 0:
            parameters = [p for group in self.inner.param_groups for p in group["params"]]
            for slow, p in zip(self.slow, parameters, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)
