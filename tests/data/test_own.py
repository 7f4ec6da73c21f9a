import sys

import pytest
import torch

from nm2trt.data import load_data
from nm2trt.errors import ConfigError, InputError

SOURCE = """
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from nm2trt.data import DataSet


class Listed(Dataset):
    classes = ["a", "b", "c"]

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return torch.full((1, 2, 2), float(index)), index % 3


class Unlabeled(Listed):
    classes = None


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


def tensors(dtype=torch.float32, labels=(0, 1, 2, 1)):
    return TensorDataset(torch.arange(4 * 3).reshape(4, 3).to(dtype), torch.tensor(labels))


def pair():
    return Listed(), Listed()


def in_memory(data_dir):
    assert data_dir is None or data_dir.name
    return tensors(), tensors()


def whole(**offered):
    assert set(offered) == {"data_dir"}
    x, y = np.zeros((3, 4), np.float32), np.array([0, 1, 1])
    return DataSet.from_arrays(
        name="x", source="made up", classes=2, train_x_NX=x, train_y_N=y, test_x_NX=x, test_y_N=y
    )


def bytes_pair():
    return tensors(torch.uint8), tensors(torch.uint8)


def float_labels():
    return tensors(labels=(0.0, 1.0, 2.0, 1.0)), tensors()


def high_test_label():
    return tensors(), tensors(labels=(0, 1, 3, 1))


def nothing_tells():
    return Unlabeled(), Listed()


def endless():
    return Endless(), Listed()


def rubbish():
    return 7


def none():
    return None


def fails():
    raise ValueError("no luck")


def asks(color, data_dir):
    return None


number = 5
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the user's module, and the folder to stand in."""
    (tmp_path / "my_own_data.py").write_text(SOURCE)
    (tmp_path / "broken_own_data.py").write_text("import nothing_of_this_name")
    (tmp_path / "unparsed_own_data.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("own_data")]:
        del sys.modules[name]


def test_a_pair_of_torch_data_sets_is_read_sample_by_sample(here):
    data = load_data("my_own_data:pair")
    assert (data.name, data.classes, data.input_shape) == ("my_own_data:pair", 3, (1, 2, 2))
    assert not data.train.in_memory
    x_BX, y_B = data.train.fetch([4, 1], 0)
    assert (x_BX[:, 0, 0, 0].tolist(), y_B.tolist()) == ([4, 1], [1, 1])
    assert data.test_samples(2).shape == (2, 1, 2, 2)


def test_tensors_stay_in_memory(here, tmp_path):
    data = load_data("my_own_data:in_memory", tmp_path)
    assert data.train.in_memory
    assert (data.classes, data.input_shape) == (3, (3,))
    assert data.train.fetch([2], 0)[0].tolist() == [[6, 7, 8]]


def test_a_data_set_of_ours_is_taken_as_it_is(here):
    data = load_data("my_own_data:whole")
    assert (data.name, data.source, data.classes) == ("my_own_data:whole", "made up", 2)


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("no_such_own_data:f", ConfigError, "there is no module 'no_such_own_data'"),
        ("my_own_data:f", ConfigError, "my_own_data.py has no 'f'"),
        ("my_own_data:number", ConfigError, "number is int and cannot be called"),
        ("my_own_data:asks", ConfigError, "asks for color; it can have data_dir"),
        ("my_own_data", ConfigError, "unknown data set"),
        ("my own:data", ConfigError, "unknown data set"),
        (
            "broken_own_data:f",
            InputError,
            r"ModuleNotFoundError: No module named 'nothing_of.*broken_own_data.py, line 1",
        ),
        ("unparsed_own_data:f", InputError, "SyntaxError"),
        ("my_own_data:fails", InputError, r"raised ValueError: no luck \(.*my_own_data.py, line \d+\)"),
        ("my_own_data:rubbish", InputError, "returned int; return a nm2trt.data.DataSet"),
        ("my_own_data:none", InputError, "returned NoneType"),
        ("my_own_data:endless", InputError, "its train is Endless, without length or index"),
        ("my_own_data:bytes_pair", InputError, "train: x is torch.uint8; scale"),
        ("my_own_data:float_labels", InputError, "labels are torch.float32 and no integers"),
        ("my_own_data:high_test_label", InputError, r"test: label 2 is 3, outside 0..2"),
        ("my_own_data:nothing_tells", InputError, "nothing tells the number of classes; give train a `classes`"),
    ],
)
def test_mistakes_are_one_line_that_names_them(here, reference, error, words):
    with pytest.raises(error, match=words) as caught:
        load_data(reference)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == {ConfigError: 2, InputError: 3}[error]


def test_the_current_folder_does_not_shadow_what_is_installed(here):
    (here / "torchvision.py").write_text("raise RuntimeError")
    load_data("my_own_data:pair")
    assert sys.path[0] != str(here)
    assert sys.path[-1] == str(here)
    assert torch.__file__
