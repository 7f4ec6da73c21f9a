# ruff: noqa: NPY002 -- users' transforms draw from numpy's global generator
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.data import ArraySamples, LazySamples, SampleError
from nm2trt.data.samples import draw, seeded
from nm2trt.errors import InputError


class Noisy(torch.utils.data.Dataset):
    """Draws from all three generators that transforms use."""

    def __init__(self, count=6):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()), random.random(), np.random.rand()]), index % 3


class Returns(torch.utils.data.Dataset):
    """Good samples, but for one."""

    def __init__(self, bad, at=2):
        self.bad, self.at = bad, at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.bad if index == self.at else (torch.zeros(2), 1)


def test_arrays_answer_with_one_gather_and_convert_it():
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    samples = ArraySamples(x, np.array([5, 6, 7, 8]), name="n", convert=lambda x_BX: x_BX.float() / 2)
    x_BX, y_B = samples.fetch([9, 4], seed=0)  # epoch 2 sample 1, epoch 1 sample 0
    assert x_BX.tolist() == [[1.5, 2.0, 2.5], [0.0, 0.5, 1.0]]
    assert y_B.tolist() == [6, 5]


def test_what_a_sample_draws_follows_from_seed_and_key_alone():
    samples = LazySamples(Noisy(), name="n", classes=3)
    together, _ = samples.fetch([1, 8, 3], seed=5)
    torch.rand(3)
    alone = torch.cat([samples.fetch([key], seed=5)[0] for key in (1, 8, 3)])
    assert torch.equal(together, alone)
    assert not torch.equal(samples.fetch([2], 5)[0], samples.fetch([8], 5)[0]), "sample 2 in epochs 0 and 1"
    assert not torch.equal(samples.fetch([2], 5)[0], samples.fetch([2], 6)[0])
    assert together[:, 1:].unique().numel() == 9


def test_the_callers_generators_are_left_as_they_were():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    try:
        with seeded(7):
            torch.rand(5), random.random(), np.random.rand()
            raise KeyError  # noqa: TRY301
    except KeyError:
        pass
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


@given(seed=st.integers(0, 2**40), key=st.integers(0, 2**60))
def test_draws_fit_every_generator(seed, key):
    value = draw(seed, key)
    assert 0 <= value < 2**64
    assert value == draw(seed, key) != draw(seed, key + 1)
    with seeded(value):
        pass


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((torch.zeros(3), 1), r"x is \[3\], others are \[2\]"),
        ((torch.zeros(2, dtype=torch.uint8), 1), "x is uint8; scale it"),
        (("text", 1), "x is str and no tensor"),
        ((torch.zeros(2), 3), r"label is 3, outside 0..2"),
        ((torch.zeros(2), -1), r"label is -1, outside"),
        ((torch.zeros(2), 1.0), r"label is 1.0 \(float\) and no integer"),
        ((torch.zeros(2), True), "no integer"),
        ((torch.zeros(2), torch.zeros(2, dtype=torch.int64)), "no integer"),
        (torch.zeros(2)[0], "no pair"),
        (None, "NoneType and no pair"),
        ((torch.zeros(2), 1, 5), "no pair"),
    ],
)
def test_a_sample_that_breaks_the_promise_is_named(bad, words):
    samples = LazySamples(Returns(bad), name="mine train", classes=3)
    assert samples.fetch([0, 1], 0)[1].tolist() == [1, 1]
    with pytest.raises(SampleError, match=f"mine train sample 2: .*{words}") as caught:
        samples.fetch([1, 2], 0)
    assert caught.value.exit_code == 3


def test_the_first_sample_is_read_at_once():
    with pytest.raises(InputError, match="mine train sample 0: x is str"):
        LazySamples(Returns(("text", 1), at=0), name="mine train", classes=3)


def test_what_a_data_set_raises_is_told_in_one_line():
    class Fails(Returns):
        def __getitem__(self, index):
            return super().__getitem__(index) if index < 3 else {}[index]

    samples = LazySamples(Fails(None), name="mine train", classes=3)
    with pytest.raises(SampleError, match=r"^mine train sample 3: raised KeyError: 3 \(.*test_samples.py, line \d+\)$"):
        samples.fetch([3], 0)


@pytest.mark.parametrize("label", [1, np.int32(1), torch.tensor(1, dtype=torch.int8), np.array(1)])
def test_every_kind_of_integer_is_a_label(label):
    _, y_B = LazySamples(Returns((torch.zeros(2), label)), name="n", classes=2).fetch([2], 0)
    assert y_B.dtype == torch.int64
    assert y_B.tolist() == [1]


def test_numpy_and_doubles_become_float32():
    x_BX, _ = LazySamples(Returns((np.ones(2), 1)), name="n", classes=2).fetch([2], 0)
    assert x_BX.dtype == torch.float32
    assert x_BX.tolist() == [[1, 1]]


def test_no_samples():
    with pytest.raises(InputError, match="no sample"):
        LazySamples([], name="n", classes=2)
    with pytest.raises(InputError, match="0 samples and 0 labels"):
        ArraySamples(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), name="n")
