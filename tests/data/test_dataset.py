import gzip

import numpy as np
import pytest
from test_idx import idx_bytes

from nm2trt.data import data_names, load_data
from nm2trt.data.dataset import DataSet
from nm2trt.data.fashion_mnist import _FILES, _MEAN, _STD, system_folder
from nm2trt.data.idx import read_idx
from nm2trt.errors import ConfigError, InputError


def test_digits_are_the_1797_of_scikit_learn_split_once():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert data.input_shape == (1, 8, 8)
    train_x, test_x = data.train.x.numpy(), data.test.x.numpy()
    assert len(train_x) + len(test_x) == len(data.train) + len(data.test) == 1797
    assert train_x.dtype == np.float32
    assert abs(train_x.mean()) < 1e-5
    assert train_x.std() == pytest.approx(1, abs=1e-5)
    # Undo the standardization: the two parts together are exactly the original images.
    originals = {image.tobytes() for image in load_digits().images.astype(np.uint8)}
    x = np.concatenate([train_x, test_x])[:, 0]
    low, high = x.min(), x.max()
    found = {np.rint((image - low) / (high - low) * 16).astype(np.uint8).tobytes() for image in x}
    assert found == originals
    again = load_data("digits")
    np.testing.assert_array_equal(again.test.y, data.test.y)
    counts = np.bincount(data.test.y)
    assert counts.min() >= 43
    assert counts.max() <= 47


def write_fashion(folder, *, packed, drop=(), first_label=0):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, stem in _FILES.items():
        if part in drop:
            continue
        count = 6 if part.startswith("train") else 4
        array = (
            random.integers(0, 256, (count, 28, 28)).astype("u1")
            if part.endswith("x")
            else np.arange(first_label, first_label + count, dtype="u1")
        )
        content = idx_bytes(array)
        (folder / (f"{stem}.gz" if packed else stem)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_from_a_folder_of_idx_files(tmp_path, packed, below):
    write_fashion(tmp_path / below, packed=packed)
    data = load_data("fashion-mnist", tmp_path)
    assert tuple(data.train.x.shape) == (6, 1, 28, 28)
    assert data.test.y.tolist() == [0, 1, 2, 3]
    assert data.source == "idx files in --data-dir"


def test_a_missing_part_is_named(tmp_path):
    write_fashion(tmp_path, packed=True, drop=("test_y",))
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte is missing"):
        load_data("fashion-mnist", tmp_path)


def test_labels_out_of_range_are_named(tmp_path):
    write_fashion(tmp_path, packed=False, first_label=8)
    with pytest.raises(InputError, match=r"train: label 2 is 10, outside 0..9"):
        load_data("fashion-mnist", tmp_path)


def test_a_data_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_data("fashion-mnist", tmp_path / "no")


def test_nothing_to_be_had_says_how_to_get_it(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    def refuse(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(FashionMNIST, "download", refuse)
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="--data-dir, or install Debian's dataset-fashion-mnist"):
        load_data("fashion-mnist")


def test_debians_package_is_found_and_its_statistics_are_ours():
    folder = system_folder()
    if folder is None:
        pytest.skip("missing: Debian package dataset-fashion-mnist")
    pixels = read_idx(folder / f"{_FILES['train_x']}.gz").astype(np.float64) / 255
    assert pixels.mean() == pytest.approx(_MEAN, abs=5e-5)
    assert pixels.std() == pytest.approx(_STD, abs=5e-5)
    data = load_data("fashion-mnist")
    assert tuple(data.train.x.shape) == (60000, 1, 28, 28)
    assert np.bincount(data.train.y).tolist() == [6000] * 10
    assert len(data.test) == 10000


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        ConfigError, match="choose from cifar10, cifar100, cmudict, digits, fashion-mnist, imagefolder, or name package"
    ):
        load_data("imagenet2")
    assert data_names() == ["cifar10", "cifar100", "cmudict", "digits", "fashion-mnist", "imagefolder"]


def test_counts_must_agree():
    x, y = np.zeros((2, 1, 1, 1), np.float32), np.zeros(3, np.int64)
    with pytest.raises(InputError, match="n train: 2 samples and 3 labels"):
        DataSet.from_arrays(name="n", source="s", classes=2, train_x_NX=x, train_y_N=y, test_x_NX=x, test_y_N=y)
