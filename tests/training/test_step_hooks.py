"""Around every step once, in order and to the end, whoever calls it and whatever is wrapped around the optimizer."""

import contextlib
import copy
import io
import signal
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_outside_writes import WEIGHTS, assert_split, batches_of, mlp, most, one_step
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify

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


class Decayed(torch.optim.SGD):
    """A subclass that does more after `super().step()`."""

    factor = 0.9

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(self.factor)
        return loss


def test_a_subclass_that_steps_by_super_acts_on_w():
    """W after each step is 0.9 times what the update alone gives."""
    nn.Linear(1, 1)
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # so that its step calls hooks, too
    net, by_hand = mlp(), mlp()
    optimizer, plain = Decayed(net.parameters(), lr=0.1), torch.optim.SGD(by_hand.parameters(), lr=0.1)
    ours, theirs = (sparsify(n, o, "2:4", decay=DECAY) for n, o in ((net, optimizer), (by_hand, plain)))
    for x, y in batches_of(4):
        one_step(net, optimizer, x, y)
        one_step(by_hand, plain, x, y)
        with theirs.dense_parameters(), torch.no_grad():
            for parameter in by_hand.parameters():
                parameter.mul_(0.9)
        assert_split(net, ours)
    assert ours.steps == 4
    assert_equal(ours.dense_weights(), theirs.dense_weights())
    assert all(bool(residual.any()) for residual in ours.residuals().values())


class Fails(torch.optim.SGD):
    error: BaseException | None = None

    def step(self, closure=None):
        result = super().step(closure)
        if self.error is not None:
            raise self.error
        return result


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), KeyboardInterrupt(), RuntimeError("mine")])
@pytest.mark.parametrize("freeze", [False, True])
def test_after_an_exception_weights_are_n_m_and_w_is_what_it_was(error, freeze):
    net = mlp()
    optimizer = Fails(net.parameters(), lr=0.1)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    for x, y in batches_of(3):
        one_step(net, optimizer, x, y)
    if freeze:
        sparsifier.freeze_masks()
    before, optimizer.error = sparsifier.dense_weights(), error
    optimizer.param_groups[0]["lr"] = 0.0
    gradient = net[0].weight.grad.clone()
    with pytest.raises(type(error)):
        optimizer.step()
    assert_split(net, sparsifier)
    assert torch.equal(net[0].weight.grad, gradient)
    assert_equal(sparsifier.dense_weights(), before)
    optimizer.error = None
    optimizer.step()
    assert_equal(sparsifier.dense_weights(), before)


def test_an_exception_past_the_guard_is_noticed_at_the_next_step():
    """Whoever took `optimizer.step` before `sparsify` calls it past the instance, as accelerate's loss scaling does."""
    net = mlp()
    optimizer = Fails(net.parameters(), lr=0.0)
    step = optimizer.step
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    before = sparsifier.dense_weights()
    F.cross_entropy(net(batches_of(1)[0][0]), batches_of(1)[0][1]).backward()
    gradient = net[0].weight.grad.clone()
    optimizer.error = RuntimeError("mine")
    with pytest.raises(RuntimeError, match="mine"):
        step()
    optimizer.error = None
    step()
    assert_split(net, sparsifier)
    assert_equal(sparsifier.dense_weights(), before)
    assert torch.equal(net[0].weight.grad, gradient)


@pytest.mark.parametrize("late", [False, True])
def test_other_peoples_hooks_see_n_m_weights_and_the_tasks_gradient(late):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen, gradients = [], []

    def look(*_):
        seen.append(most(net[0].weight))
        gradients.append(net[0].weight.grad.clone())

    def register():
        optimizer.register_step_pre_hook(look)
        optimizer.register_step_post_hook(look)

    if not late:
        register()
    sparsify(net, optimizer, "2:4", decay=DECAY)
    if late:
        register()
    for x, y in batches_of(3):
        one_step(net, optimizer, x, y)
    assert seen == [2] * 6
    assert all(torch.equal(gradients[k], gradients[k + 1]) for k in (0, 2, 4))


def test_a_late_hook_that_clips_does_not_clip_the_decay():
    results = []
    for late in (True, False):
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        sparsifier = sparsify(net, optimizer, "2:4", decay=0.5)
        if late:

            def clip(*_, net=net):
                nn.utils.clip_grad_norm_(net.parameters(), 0.01)

            optimizer.register_step_pre_hook(clip)
        for x, y in batches_of(3):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if not late:
                nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            optimizer.step()
        results.append(sparsifier.dense_weights())
    assert_equal(*results)


def closure_of(net, optimizer, x, y, calls=None):
    def closure():
        optimizer.zero_grad()
        if calls is not None:
            calls.append(most(net[0].weight))
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_is_evaluated_at_n_m_weights_and_gives_the_same_step(name, keyword):
    """Lightning's way: `optimizer.step(closure=...)`, the backward pass within."""
    kind = getattr(torch.optim, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = plain_run(lambda net: kind(net.parameters(), lr=0.01))
        net = mlp()
        optimizer = kind(net.parameters(), lr=0.01)
        sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    calls = []
    for x, y in batches_of(5):
        closure = closure_of(net, optimizer, x, y, calls)
        loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert loss.requires_grad or float(loss) > 0
        assert_split(net, sparsifier)
    assert calls == [2] * 5
    assert sparsifier.steps == 5
    assert_equal(sparsifier.dense_weights(), expected)


def test_a_closure_that_zeroes_gradients_in_place_and_one_that_does_nothing():
    expected = plain_run()
    for manual in (False, True):
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
        for x, y in batches_of(5):

            def closure(net=net, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad(set_to_none=False)
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                return loss

            if manual:
                closure()
                optimizer.step(closure=lambda: None)
            else:
                optimizer.step(closure)
        assert_equal(sparsifier.dense_weights(), expected)


def test_a_closure_that_raises_leaves_n_m_weights():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = sparsify(net, optimizer, "2:4")
    before = sparsifier.dense_weights()

    def closure():
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        optimizer.step(closure)
    assert_split(net, sparsifier)
    assert_equal(sparsifier.dense_weights(), before)
    one_step(net, optimizer, *batches_of(1)[0])
    assert sparsifier.steps == 1


def test_lbfgs_is_refused():
    net = mlp()
    with pytest.raises(ConfigError, match="LBFGS searches along a line of dense weights"):
        sparsify(net, torch.optim.LBFGS(net.parameters()))


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


@pytest.fixture
def ctrl_c():
    """Python's own handler: what a shell starts in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("within", ["restore_all", "split_all"])
def test_ctrl_c_while_weights_are_moved_waits_until_they_are_whole(monkeypatch, within):
    from nm2trt.training import masked_weights

    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    before = sparsifier.dense_weights()
    move = getattr(masked_weights, within)

    def interrupted(layers, **options):
        move(layers[:1], **options)
        signal.raise_signal(signal.SIGINT)
        move(layers[1:], **options)

    monkeypatch.setattr(masked_weights, within, interrupted)
    with pytest.raises(KeyboardInterrupt):
        one_step(net, optimizer, *batches_of(1)[0])
    monkeypatch.undo()
    assert_split(net, sparsifier)
    assert_equal(sparsifier.dense_weights(), before)
    one_step(net, optimizer, *batches_of(1)[0])
    assert_equal(sparsifier.dense_weights(), before)


def test_an_optimizer_whose_hooks_never_fire_is_named_when_somebody_asks():
    """Another optimizer than the one that was given trains the network."""
    net = mlp()
    given, other = (torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    sparsifier = sparsify(net, given, "2:4")
    for x, y in batches_of(3):
        one_step(net, other, x, y)
    for ask in (sparsifier.patterns, sparsifier.report, sparsifier.state_dict, sparsifier.masks):
        with pytest.raises(ConfigError, match=r"layer 0\.weight, 2\.weight: .*no step of the optimizer was seen"):
            ask()


def test_what_has_no_optimizer_inside_is_refused():
    class Trainer:
        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters)}]

        def step(self):
            raise NotImplementedError

    net = mlp()
    with pytest.raises(ConfigError, match="Trainer is no torch optimizer and has none inside"):
        sparsify(net, Trainer(net.parameters()))


def test_accelerates_optimizer_is_looked_through():
    accelerate = pytest.importorskip("accelerate")
    expected = plain_run()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = mlp()
    optimizer = accelerator.prepare(torch.optim.SGD(net.parameters(), lr=0.1))
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    for x, y in batches_of(5):
        for part in (slice(0, 4), slice(4, 8)):
            with accelerator.accumulate(net):
                accelerator.backward(F.cross_entropy(net(x[part]), y[part]))
                optimizer.step()
                optimizer.zero_grad()
    assert sparsifier.steps == 5
    assert_equal(sparsifier.dense_weights(), expected, tolerance=1e-12)


def test_sparsify_again_goes_on_from_w():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    first = sparsify(net, optimizer, "2:4", decay=DECAY)
    data = batches_of(6)
    for x, y in data[:3]:
        one_step(net, optimizer, x, y)
    dense = first.dense_weights()
    second = sparsify(net, optimizer, "2:4", decay=DECAY)
    assert_equal(second.dense_weights(), dense)
    for x, y in data[3:]:
        one_step(net, optimizer, x, y)
    assert (first.steps, second.steps) == (3, 3)
    for ask in (first.patterns, first.state_dict, first.record_sad):
        with pytest.raises(ConfigError, match="a later call of sparsify has taken these layers over"):
            ask()
    first.remove_hooks()
    once = mlp()
    optimizer = torch.optim.SGD(once.parameters(), lr=0.1, momentum=0.9)
    only = sparsify(once, optimizer, "2:4", decay=DECAY)
    for x, y in data:
        one_step(once, optimizer, x, y)
    assert_equal(second.dense_weights(), only.dense_weights())


@pytest.mark.parametrize("keep_first", [True, False])
def test_sparsify_again_with_another_optimizer_and_pattern(keep_first):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = sparsify(net, optimizer, "2:4", decay=DECAY)
    for x, y in batches_of(3):
        one_step(net, optimizer, x, y)
    dense = first.dense_weights()
    if not keep_first:
        del first, optimizer
    other = torch.optim.SGD(net.parameters(), lr=0.1)
    second = sparsify(net, other, "1:4")
    assert_equal(second.dense_weights(), dense)
    one_step(net, other, *batches_of(1)[0])
    assert (net[0].weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 1


def test_two_sparsifiers_with_an_optimizer_each_share_a_network():
    results = []
    for split in (True, False):
        net = mlp()
        if split:
            optimizers = [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[2:].parameters(), lr=0.1)]
            ours = [
                sparsify(net, optimizers[0], "2:4", decay=DECAY, exclude=["2", "4"]),
                sparsify(net, optimizers[1], "2:4", decay=DECAY, exclude=["0", "4"]),
            ]
        else:
            optimizers = [torch.optim.SGD(net.parameters(), lr=0.1)]
            ours = [sparsify(net, optimizers[0], "2:4", decay=DECAY)]
        for x, y in batches_of(4):
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
        results.append({name: value for one in ours for name, value in one.dense_weights().items()})
    assert_equal(*results)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_copy_of_all_three_trains_n_m_and_leaves_the_original_alone(wrapped):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer = PlainLookahead(optimizer) if wrapped else optimizer
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    data = batches_of(6)
    for x, y in data[:3]:
        one_step(net, optimizer, x, y)
    dense = sparsifier.dense_weights()
    copies = copy.deepcopy({"s": sparsifier, "o": optimizer, "n": net})
    for x, y in data[3:]:
        one_step(copies["n"], copies["o"], x, y)
        assert_split(copies["n"], copies["s"])
    assert_equal(sparsifier.dense_weights(), dense)
    assert (sparsifier.steps, copies["s"].steps) == (3, 6)
    for x, y in data[3:]:
        one_step(net, optimizer, x, y)
    assert_equal(sparsifier.dense_weights(), copies["s"].dense_weights())


def test_a_sparsifier_is_not_pickled():
    net = mlp()
    sparsifier = sparsify(net, torch.optim.SGD(net.parameters(), lr=0.1))
    for act in (lambda one: torch.save(one, io.BytesIO()), copy.copy):
        with pytest.raises(ConfigError, match="cannot be pickled"):
            act(sparsifier)


@pytest.mark.not_quick
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_step_is_the_plain_one(backend, whole):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 4)).double()
    compiled = copy.deepcopy(plain)
    results = []
    for net in (plain, compiled):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
        step = optimizer.step
        if net is compiled:
            step = torch.compile(optimizer.step if whole else lambda o=optimizer: o.step(), backend=backend)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 8, 2, 2, dtype=torch.float64, generator=generator)).square().sum().backward()
            step()
        assert sparsifier.steps == 3
        results.append(sparsifier.dense_weights())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=1e-12)


def test_a_schedule_made_before_or_after_does_not_warn():
    for before in (True, False):
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1) if before else None
            sparsifier = sparsify(net, optimizer, "2:4")
            schedule = schedule or torch.optim.lr_scheduler.StepLR(optimizer, 1)
            for x, y in batches_of(3):
                one_step(net, optimizer, x, y)
                schedule.step()
        assert sparsifier.steps == 3
        sparsifier.remove_hooks()
        one_step(net, optimizer, *batches_of(1)[0])
        assert sparsifier.steps == 3
        assert most(net[0].weight) > 2


def test_remove_gives_the_optimizer_its_step_back():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsify(net, optimizer, "2:4").remove_hooks()
    assert "step" not in vars(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(module._load_state_dict_post_hooks for module in net.modules())
