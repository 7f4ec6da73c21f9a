# ruff: noqa: NPY002 -- users' transforms draw from numpy's global generator
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.data import DataSet, LazySamples, SampleError
from nm2trt.training.batches import epoch_batches, evaluation_loader, train_loader


def arrays(count=10, test=5, shape=(2,)):
    numbers = np.random.default_rng(0)
    train_x, test_x = (numbers.standard_normal((n, *shape), dtype=np.float32) for n in (count, test))
    return DataSet.from_arrays(
        name="made",
        source="made",
        classes=max(count, test),
        train_x_NX=train_x,
        train_y_N=np.arange(count),
        test_x_NX=test_x,
        test_y_N=np.arange(test),
    )


class Noisy(torch.utils.data.Dataset):
    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 10

    def __getitem__(self, index):
        x = torch.tensor([float(index), torch.rand(()), random.random(), np.random.rand()])
        return x, 99 if index == self.bad else index


def files(bad=None):
    train = LazySamples(Noisy(bad), name="noisy train", classes=10)
    test = LazySamples(Noisy(), name="noisy test", classes=10)
    return DataSet(name="noisy", source="made", classes=10, input_shape=(4,), train=train, test=test)


def batches_of(loader, epoch, skip=0):
    return [(x.clone(), y.clone()) for x, y in epoch_batches(loader, epoch, skip=skip)]


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(x, other_x) and torch.equal(y, other_y)
        for (x, y), (other_x, other_y) in zip(found, expected, strict=True)
    )


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**33), epoch=st.integers(0, 500))
@examples(40)
def test_an_epoch_is_a_permutation_cut_in_full_batches(count, batch_size, seed, epoch):
    data = arrays(count)
    found = batches_of(train_loader(data, batch_size=batch_size, seed=seed), epoch)
    labels = torch.cat([y for _, y in found]).tolist()
    assert len(set(labels)) == len(labels)
    assert len(labels) == (count // batch_size * batch_size or count)
    for x_BX, y_B in found:
        assert torch.equal(x_BX, data.train.x[y_B])


@pytest.mark.parametrize("make", [arrays, files])
def test_epochs_differ_seeds_differ_and_both_repeat(make):
    loader = train_loader(make(), batch_size=3, seed=1, workers=0)
    first, second, again = (batches_of(loader, epoch) for epoch in (1, 2, 1))
    assert same(first, again)
    assert not same(first, second)
    assert not same(first, batches_of(train_loader(make(), batch_size=3, seed=2, workers=0), 1))


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_skipping_change_no_batch(workers, prepared):
    expected = batches_of(train_loader(files(), batch_size=3, seed=1, workers=0), 4)
    loader = train_loader(files(), batch_size=3, seed=1, workers=workers)
    if prepared:
        loader = Accelerator(cpu=True).prepare(loader)
    assert same(batches_of(loader, 4), expected)
    for skip in range(4):
        assert same(batches_of(loader, 4, skip), expected[skip:])
    assert same(batches_of(loader, 5), batches_of(train_loader(files(), batch_size=3, seed=1, workers=0), 5))
    assert same(batches_of(loader, 4), expected)


def test_skipped_batches_are_not_read():
    data = files()
    read = []
    original = Noisy.__getitem__

    class Counted(Noisy):
        def __getitem__(self, index):
            read.append(index)
            return original(self, index)

    data = DataSet(
        name="n",
        source="s",
        classes=10,
        input_shape=(4,),
        train=LazySamples(Counted(), name="n", classes=10),
        test=data.test,
    )
    read.clear()
    assert len(batches_of(train_loader(data, batch_size=2, seed=0, workers=0), 1, skip=3)) == 2
    assert len(read) == 4


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    for workers in (0, 1):
        torch.manual_seed(3)
        batches_of(train_loader(files(), batch_size=3, seed=1, workers=workers), 1)
        for _ in evaluation_loader(files(), workers=workers):
            pass
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("make", [arrays, files])
def test_evaluation_is_in_order_and_complete(make):
    data = make()
    labels = torch.cat([y for _, y in evaluation_loader(data, workers=0)])
    assert labels.tolist() == list(range(len(data.test)))


def test_large_samples_are_evaluated_in_small_batches():
    data = arrays(count=2, test=40, shape=(2**19,))
    assert [len(y) for _, y in evaluation_loader(data)] == [32, 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_one_line_also_out_of_a_worker(workers):
    loader = train_loader(files(bad=7), batch_size=5, seed=0, workers=workers)
    with pytest.raises(SampleError) as caught:
        batches_of(loader, 1)
    assert str(caught.value) == "noisy train sample 7: the label is 99, outside 0..9"
