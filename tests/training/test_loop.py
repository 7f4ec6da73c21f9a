import csv

import pytest
import torch
from safetensors.torch import load_file

from nm2trt.pattern import NMPattern
from nm2trt.training import nm_mask
from nm2trt.training.config import load_config
from nm2trt.training.run import train
from nm2trt.training.schedule import cosine_cycles, cosine_with_warmup

QUICK = {"model": "mlp", "device": "cpu", "batch_size": 128}


def config(**options):
    return load_config(None, {**QUICK, **options})


def weights(folder):
    return load_file(folder / "checkpoint.safetensors")


def sad_rows(folder):
    with (folder / "sad.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["layer"] == "total"]


def test_asp_is_the_dense_run_pruned_once_and_held(tmp_path):
    train(config(method="dense", epochs=2), tmp_path / "dense")
    train(config(method="asp", epochs=4, dense_epochs=2), tmp_path / "asp")
    dense, asp = weights(tmp_path / "dense"), weights(tmp_path / "asp")
    for name in ("hidden1.weight", "hidden2.weight"):
        mask = nm_mask(dense[name], NMPattern(2, 4), 1)
        assert asp[name][~mask].abs().max() == 0
        assert not torch.equal(asp[name], dense[name] * mask), "nothing was fine-tuned"
    assert [int(row["sad_start"]) for row in sad_rows(tmp_path / "asp")][2:] == [0, 0]


def test_frozen_masks_stop_moving_and_weights_do_not(tmp_path):
    train(config(epochs=5, freeze_epochs=2, decay=0.1), tmp_path / "run")
    moved = [int(row["sad_previous"]) for row in sad_rows(tmp_path / "run")]
    assert moved[:3] == [value for value in moved[:3] if value > 0]
    assert moved[3:] == [0, 0]


def test_masks_that_are_refreshed_rarely_flip_less_often(tmp_path):
    for every in (1, 20):
        train(config(epochs=3, mask_update_interval=every, decay=0.1), tmp_path / str(every))
    flips = {every: int(sad_rows(tmp_path / str(every))[-1]["flips_cumulative"]) for every in (1, 20)}
    assert 0 < flips[20] < flips[1]


class Cut(BaseException):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(
    ("options", "cut_at"),
    [
        ({"method": "asp", "dense_epochs": 2}, 15),
        ({"method": "asp", "dense_epochs": 2}, 25),
        ({"method": "asp", "dense_epochs": 2}, 35),
        ({"method": "sr-ste", "freeze_epochs": 2, "mask_update_interval": 3}, 15),
        ({"method": "sr-ste", "freeze_epochs": 2, "mask_update_interval": 3}, 35),
        ({"method": "ste", "precision": "bf16"}, 25),
        ({"method": "dense"}, 25),
    ],
)
def test_every_method_resumes_to_the_same_bytes(tmp_path, options, cut_at):
    settings = config(epochs=4, **options)
    whole = train(settings, tmp_path / "whole")

    def cut(done, _of, _words):
        if done == cut_at:
            raise Cut

    with pytest.raises(Cut):
        train(settings, tmp_path / "cut", progress=cut)
    assert not (tmp_path / "cut" / "run.json").exists()
    resumed = train(settings, tmp_path / "cut", resume=True)
    assert resumed.files["checkpoint.safetensors"] == whole.files["checkpoint.safetensors"]
    assert resumed.files["sad.csv"] == whole.files["sad.csv"]


def test_cut_before_the_first_state_nothing_is_left(tmp_path):
    def cut(*_):
        raise Cut

    with pytest.raises(Cut):
        train(config(epochs=2), tmp_path / "a" / "run", progress=cut)
    assert list(tmp_path.iterdir()) == []


def test_force_gives_the_old_run_back_when_the_new_one_never_got_going(tmp_path):
    train(config(epochs=1, warmup_epochs=0), tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()

    def cut(*_):
        raise Cut

    with pytest.raises(Cut):
        train(config(epochs=2, seed=5), tmp_path / "run", force=True, progress=cut)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_cycles_start_anew():
    cycles = [cosine_cycles(step, cycles=[6, 4], warmup_steps=2) for step in range(10)]
    first = [cosine_with_warmup(step, steps=6, warmup_steps=2) for step in range(6)]
    second = [cosine_with_warmup(step, steps=4, warmup_steps=2) for step in range(4)]
    assert cycles == first + second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3, "freeze_epochs": 3}, "leaves nothing of 3 epochs to move masks"),
        ({"epochs": 3, "dense_epochs": 1}, "goes with method asp"),
        ({"epochs": 3, "dense_epochs": 3, "method": "asp"}, "needs an epoch before pruning and one after"),
        ({"mask_update_interval": 0}, "mask_update_interval = 0"),
    ],
)
def test_phases_that_do_not_fit(options, message):
    from nm2trt.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_a_state_of_before_scores_had_names_goes_on(tmp_path):
    settings = config(epochs=2)
    whole = train(settings, tmp_path / "whole")
    path = tmp_path / "whole" / "state" / "last.pt"
    content = torch.load(path, weights_only=True)
    content["history"] = content["history"].replace("test_score", "test_accuracy")
    assert "test_accuracy" in content["history"]
    torch.save(content, path)
    (tmp_path / "whole" / "run.json").unlink()
    assert train(settings, tmp_path / "whole", resume=True).result == whole.result
