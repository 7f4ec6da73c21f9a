"""No download: archives of a few images, made here; torchvision's md5 check of the real ones is switched off."""

import pickle  # noqa: TID251 -- the archive's own format

import numpy as np
import pytest
import torch
import torchvision

from nm2trt.data import load_data
from nm2trt.data.cifar import Standardize, crop_and_flip
from nm2trt.errors import InputError


def write_cifar10(folder):
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        rows = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 9, 3, 4]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))


def test_files_that_are_there_are_read_and_standardized(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    data = load_data("cifar10", tmp_path)
    assert (data.classes, data.input_shape) == (10, (3, 32, 32))
    assert (len(data.train), len(data.test)) == (20, 4)
    plain = data.train.x.double().numpy()
    expected = (plain - plain.mean(axis=(0, 2, 3), keepdims=True)) / plain.std(axis=(0, 2, 3), keepdims=True)
    assert Standardize(data.train.x.numpy())(data.train.x).numpy() == pytest.approx(expected, abs=1e-5)
    test_x, test_y = data.test.fetch([1], 0)
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        row = pickle.load(file)["data"][1].reshape(3, 32, 32).astype(np.float64)
    mean, std = plain.mean(axis=(0, 2, 3)), plain.std(axis=(0, 2, 3))
    assert test_x[0].numpy() == pytest.approx((row - mean[:, None, None]) / std[:, None, None], abs=1e-5)
    assert test_y.tolist() == [9]


def test_only_training_images_are_altered_and_by_the_key(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    data = load_data("cifar10", tmp_path)
    assert torch.equal(data.test.fetch([0, 1], 0)[0], data.test.fetch([4, 5], 1)[0])
    assert torch.equal(data.train.fetch([2, 3], 0)[0], data.train.fetch([2, 3], 0)[0])
    assert not torch.equal(data.train.fetch([2, 3], 0)[0], data.train.fetch([22, 23], 0)[0])


def test_every_crop_is_one_that_a_slow_loop_finds():
    x = torch.arange(1, 2 * 2 * 6 * 5 + 1, dtype=torch.uint8).reshape(2, 2, 6, 5)
    seen = set()
    for seed in range(200):
        out = crop_and_flip(x, torch.Generator().manual_seed(seed))
        for image, crop in zip(x, out, strict=True):
            padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
            found = [
                (top, left, mirror)
                for top in range(9)
                for left in range(9)
                for mirror in (False, True)
                if np.array_equal(padded[:, top : top + 6, left : left + 5][:, :, :: -1 if mirror else 1], crop.numpy())
            ]
            assert found
            seen.add(found[0])
    assert len(seen) > 120, "of 162 crops"


def test_no_files_and_no_network_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)
    with pytest.raises(InputError, match=r"cifar100 is not there whole .* no route to host; unpack .*cifar-100-python"):
        load_data("cifar100", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_data("cifar10", tmp_path / "no")
