import numpy as np
import pytest
import torch
from image_files import write_images
from PIL import Image

from nm2trt.data import load_data, load_data_for
from nm2trt.errors import ConfigError, InputError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def test_the_layout_is_read_as_imagenet_is(images):
    data = load_data("imagefolder", images, image_size=16)
    assert (data.classes, data.input_shape) == (2, (3, 16, 16))
    assert (len(data.train), len(data.test)) == (12, 6)
    x_BX, y_B = data.test.fetch(range(6), 0)
    assert y_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert (x_BX[:3].mean(), x_BX[3:].mean()) == pytest.approx((-1.5, 1.5), abs=0.4), "dark cats, light dogs"


def test_test_images_are_resized_and_cropped_in_the_middle(images):
    """Against the same in numpy, where the shorter side has its final length already: 20 -> 18 would resample."""
    data = load_data("imagefolder", images, image_size=round(20 * 224 / 256))
    with Image.open(images / "val" / "cat" / "0.png") as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    assert round(18 * 256 / 224) == 21
    x_BX, _ = data.test.fetch([0], 0)
    assert tuple(x_BX.shape) == (1, 3, 18, 18)
    # Resampling from 20 to 21 keeps the mean of the image; its center lies near.
    expected = (pixels.mean(axis=(0, 1)) / 255 - MEAN) / STD
    assert x_BX.mean(dim=(0, 2, 3)).numpy() == pytest.approx(expected, abs=0.1)
    assert torch.equal(x_BX, data.test.fetch([0], 1)[0]), "nothing random in a test sample"


@pytest.mark.parametrize("randaugment", [False, True])
def test_training_images_differ_by_epoch_and_repeat_by_seed(images, randaugment):
    data = load_data("imagefolder", images, image_size=16, randaugment=randaugment)
    first, again, later = (data.train.fetch([key], 3)[0] for key in (4, 4, 16))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_a_missing_class_in_val_moves_no_label(images):
    for path in (images / "val" / "cat").iterdir():
        path.unlink()
    (images / "val" / "cat").rmdir()
    data = load_data("imagefolder", images, image_size=16)
    assert data.test.fetch(range(3), 0)[1].tolist() == [1, 1, 1]


def test_a_networks_shape_decides_the_size(images):
    assert load_data_for("imagefolder", (3, 32, 32), images).input_shape == (3, 32, 32)
    assert load_data_for("digits", (1, 8, 8)).input_shape == (1, 8, 8)


def test_bad_folders(images, tmp_path):
    with pytest.raises(ConfigError, match="give --data-dir"):
        load_data("imagefolder")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="train: has no class folders; lay it out"):
        load_data("imagefolder", tmp_path / "empty")
    with pytest.raises(InputError, match="no/train: no such folder"):
        load_data("imagefolder", tmp_path / "no")
    (images / "val" / "fox").mkdir()
    with pytest.raises(InputError, match="class 'fox' is not in train"):
        load_data("imagefolder", images)
    (images / "train" / "fox").mkdir()
    with pytest.raises(InputError, match="train/fox: has no image; add some"):
        load_data("imagefolder", images)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named(images, content):
    (images / "train" / "dog" / "1.png").write_bytes(content)
    data = load_data("imagefolder", images, image_size=16)
    with pytest.raises(InputError, match=r"train/dog/1.png: no readable image: .*; replace or remove it"):
        data.train.fetch(range(12), 0)


def test_a_cut_image_is_named(images):
    path = images / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:300])
    data = load_data("imagefolder", images, image_size=16)
    with pytest.raises(InputError, match=r"train/dog/1.png: no readable image"):
        data.train.fetch(range(12), 0)


def test_options_of_other_data_sets_are_refused():
    with pytest.raises(ConfigError, match="image_size is for imagefolder, not for digits"):
        load_data("digits", image_size=8)
    with pytest.raises(ConfigError, match="randaugment is for imagefolder"):
        load_data("cifar10", randaugment=True)
