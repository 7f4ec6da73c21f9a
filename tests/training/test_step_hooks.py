"""Around every step once, in order and to the end, whoever calls it and whatever is wrapped around the optimizer."""

import signal
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_training import DECAY, assert_equal, assert_split, batches_of, mlp, most, one_step, plain_run
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify


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
