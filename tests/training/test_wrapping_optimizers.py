"""Optimizers that step others, or some weights themselves: Lookahead, SAM, schedule-free, accelerate."""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_training import DECAY, PlainLookahead, assert_equal, assert_split, batches_of, mlp, most, one_step, plain_run

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify


class TorchLookahead(PlainLookahead, torch.optim.Optimizer):
    """Is an optimizer, too, with the groups of the inner one."""

    def __init__(self, inner, k=2):
        torch.optim.Optimizer.__init__(self, inner.param_groups, {})
        PlainLookahead.__init__(self, inner, k)
        self.param_groups = inner.param_groups

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


@pytest.mark.parametrize("kind", [PlainLookahead, TorchLookahead])
def test_a_lookahead_that_is_given_averages_w(kind):
    """Against the same by hand, inside `dense_parameters`."""
    results = []
    for given in (True, False):
        net = mlp()
        inner = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.5)
        optimizer = kind(inner)
        sparsifier = sparsify(net, optimizer if given else inner, "2:4", decay=DECAY)
        for x, y in batches_of(6):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            with contextlib.nullcontext() if given else sparsifier.dense_parameters():
                optimizer.step()
            assert_split(net, sparsifier)
        assert sparsifier.steps == 6
        results.append(sparsifier.dense_weights())
    assert_equal(*results, tolerance=1e-14)


@pytest.mark.parametrize("dense_slow_weights", [False, True])
def test_a_lookahead_around_what_is_given_is_refused(dense_slow_weights):
    net = mlp()
    inner = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    outer = PlainLookahead(inner) if dense_slow_weights else None
    sparsify(net, inner, "2:4")
    outer = outer or PlainLookahead(inner)

    def train():
        for x, y in batches_of(10):
            one_step(net, outer, x, y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match=r"outside of the optimizer's step.*dense_parameters"):
            train()


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization around a base optimizer."""

    def __init__(self, parameters, base, rho=0.05, **options):
        super().__init__(parameters, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad, alpha=group["rho"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


@pytest.mark.parametrize("by_closure", [False, True])
def test_sam_steps_its_base_and_stays_n_m(by_closure):
    net = mlp()
    optimizer = Sam(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    calls = []
    for x, y in batches_of(5):
        F.cross_entropy(net(x), y).backward()

        def closure(x=x, y=y):
            calls.append(most(net[0].weight))
            F.cross_entropy(net(x), y).backward()

        if by_closure:
            optimizer.step(closure)
        else:
            optimizer.first_step()
            F.cross_entropy(net(x), y).backward()
            optimizer.second_step()
        assert_split(net, sparsifier)
    assert sparsifier.steps == 5
    assert all(count == 2 for count in calls)
    assert sparsifier.record_sad().total.flips > 0


class ScheduleFree(torch.optim.Optimizer):
    """SGD whose parameters are y while training and x, the average, for evaluation (Defazio et al. 2024)."""

    beta = 0.9

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "k": 0, "train_mode": True})

    @torch.no_grad()
    def _swap(self, weight, mode):
        for group in self.param_groups:
            if group["train_mode"] is mode:
                continue
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight)
            group["train_mode"] = mode

    def eval(self):
        self._swap(1 - 1 / self.beta, mode=False)

    def train(self):
        self._swap(1 - self.beta, mode=True)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                c = 1 / group["k"]
                p.lerp_(z, c)
                p.add_(p.grad, alpha=group["lr"] * (self.beta * (1 - c) - 1))
                z.sub_(p.grad, alpha=group["lr"])


def test_schedule_free_swaps_w_and_evaluates_n_m_weights():
    results = []
    for evaluates in (True, False):
        net = mlp()
        optimizer = ScheduleFree(net.parameters(), lr=0.5)
        sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
        for x, y in batches_of(6):
            one_step(net, optimizer, x, y)
            if evaluates:
                optimizer.eval()
                assert_split(net, sparsifier)
                optimizer.train()
        assert_split(net, sparsifier)
        results.append(sparsifier.dense_weights())
    assert_equal(*results, tolerance=1e-12)


class LightningLike:
    """As Lightning's wrapper: the optimizer's attributes without its step, and a closure in every step."""

    def __init__(self, optimizer):
        self.__dict__ = {name: value for name, value in vars(optimizer).items() if name != "step"}
        self.__class__ = type(f"Lightning{type(optimizer).__name__}", (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure=closure or (lambda: None))


class Delegates:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.__dict__["optimizer"], name)


class TwoInOne(torch.optim.Optimizer):
    """Steps one optimizer for some parameters and one for the others, as Muon with AdamW is used."""

    def __init__(self, first, second):
        self.parts = [torch.optim.SGD(first, lr=0.1), torch.optim.SGD(second, lr=0.1)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure=None):
        for part in self.parts:
            part.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda net: LightningLike(torch.optim.SGD(net.parameters(), lr=0.1)),
        lambda net: Delegates(torch.optim.SGD(net.parameters(), lr=0.1)),
        lambda net: Delegates(LightningLike(torch.optim.SGD(net.parameters(), lr=0.1))),
        lambda net: TwoInOne(net[0].parameters(), net[2:].parameters()),
    ],
)
def test_a_wrapper_that_changes_nothing_changes_nothing(make):
    net = mlp()
    optimizer = make(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    for x, y in batches_of(5):
        one_step(net, optimizer, x, y)
        assert_split(net, sparsifier)
    assert sparsifier.steps == 5
    assert_equal(sparsifier.dense_weights(), plain_run())


class StepsSomeItself(torch.optim.Optimizer):
    """As Muon with an AdamW for the rest: updates matrices of one shape itself, and has an optimizer for the others."""

    def __init__(self, parameters, lr, *, owns_all, inner_first):
        parameters = list(parameters)
        self.mine = [parameter for parameter in parameters if tuple(parameter.shape) == (24, 16)]
        rest = [parameter for parameter in parameters if tuple(parameter.shape) != (24, 16)]
        super().__init__(parameters if owns_all else self.mine, {"lr": lr})
        self.rest, self.inner_first = torch.optim.SGD(rest, lr=lr), inner_first

    @torch.no_grad()
    def step(self, closure=None):
        if self.inner_first:
            self.rest.step()
        for parameter in self.mine:
            parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"])
        if not self.inner_first:
            self.rest.step()

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)


@pytest.mark.parametrize("owns_all", [False, True])
@pytest.mark.parametrize("inner_first", [False, True])
def test_an_optimizer_that_steps_some_weights_itself_beside_the_one_inside(owns_all, inner_first):
    ours = plain_run(lambda net: StepsSomeItself(net.parameters(), 0.1, owns_all=owns_all, inner_first=inner_first))
    assert_equal(ours, plain_run(), 1e-14)


@pytest.mark.parametrize("calls", [True, False])
def test_a_step_that_somebody_has_replaced_on_the_object(calls):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    original = optimizer.step

    @torch.no_grad()
    def mine():
        if calls:
            original()
            return
        for parameter in net.parameters():
            parameter.sub_(parameter.grad, alpha=0.1)

    optimizer.step = mine
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    for x, y in batches_of(5):
        one_step(net, optimizer, x, y)
        assert_split(net, sparsifier)
    assert sparsifier.steps == 5
    assert_equal(sparsifier.dense_weights(), plain_run(), tolerance=1e-14)
    sparsifier.remove_hooks()
    assert optimizer.step is mine
