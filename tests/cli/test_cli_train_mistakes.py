"""What a user gets wrong is told in one line that names it, and costs no training."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import assert_one_error_line, forked_python, nm2trt_inline
from safetensors import safe_open

MODULE = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from nm2trt.data import DataSet
from nm2trt.data.samples import ArraySamples

X = torch.randn(160, 16, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


def parts(train, test):
    return TensorDataset(train, Y), TensorDataset(test, Y[:40])


def with_value(index, value):
    x = X.clone()
    x[index, 3] = value
    return x


def good(): return parts(X, X[:40])
def nan_train(): return parts(with_value(17, float("nan")), X[:40])
def inf_test(): return parts(X, with_value(5, float("-inf"))[:40])


class OneByOne(Dataset):
    classes = "abcd"

    def __init__(self, index=None): self.index = index
    def __len__(self): return 160
    def __getitem__(self, i): return (with_value(i, float("nan"))[i] if i == self.index else X[i]), int(Y[i])


def nan_lazy(): return OneByOne(99), OneByOne()


class Own:
    in_memory = True

    def __init__(self, how): self.how = how
    def __len__(self): return 160

    def fetch(self, keys, seed):
        index = torch.tensor([key % 160 for key in keys])
        x, y = X[index].clone(), Y[index].clone()
        if len(keys) > 1:
            if self.how == "raises": raise OSError(5, "the disk is gone")
            if self.how == "label": y[index == 30] = 7
            if self.how == "nan": x[index == 30, 1] = float("nan")
            if self.how == "double": x = x.double()
            if self.how == "nothing": return None
        return x, y


def own(how): return DataSet(name="own", source="own", classes=4, input_shape=(16,), train=Own(how), test=Own(""))
def own_raises(): return own("raises")
def own_label(): return own("label")
def own_nan(): return own("nan")
def own_double(): return own("double")
def own_nothing(): return own("nothing")


class Task:
    score_name, score_better = "share", "higher"

    def __init__(self, how): self.how = how

    def losses(self, output, y):
        if self.how == "raises": raise ValueError("no such loss")
        losses = nn.functional.cross_entropy(output, y, reduction="none")
        return losses.mean() if self.how == "mean" else losses.detach() if self.how == "detached" else losses

    def score(self, output, y):
        return torch.zeros(len(y), 2) if self.how == "zero" else (output.argmax(1) == y).float()


def task(how):
    train, test = ArraySamples(X, Y, name="train"), ArraySamples(X[:40], Y[:40], name="test")
    return DataSet(name="t", source="t", classes=4, input_shape=(16,), train=train, test=test, task=Task(how))


def task_raises(): return task("raises")
def task_mean(): return task("mean")
def task_detached(): return task("detached")
def task_score(): return task("score")
def task_zero(): return task("zero")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x): return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight
        self.register_buffer("top", self.head.weight.data[:2])


class Raises(Net):
    calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 2: raise ValueError("third batch")
        return super().forward(x)


class Pair(Net):
    def forward(self, x): return (super().forward(x), x) if self.training else super().forward(x)


class Narrow(Net):
    def forward(self, x): return super().forward(x[:, :7] if self.training else x)


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Extra(Net):
    def get_extra_state(self): return {"epoch": 1}
    def set_extra_state(self, state): pass


class Ragged(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("graph", torch.eye(3).to_sparse())


class Poisoned(Net):
    def __init__(self):
        super().__init__()
        self.a.weight.data[1, 2] = float("nan")


class NoNumbers(Net):
    def forward(self, x): return super().forward(x) / (0.0 if self.training else 1.0)


class SilentNaN(Net):
    def forward(self, x): return super().forward(x) * (1.0 if self.training else float("nan"))


class Batchwise(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x): return super().forward(self.norm(x))


def net(): return Net()
def tied(): return Tied()
def raises(): return Raises()
def pair(): return Pair()
def narrow(): return Narrow()
def frozen(): return Frozen()
def extra(): return Extra()
def ragged(): return Ragged()
def poisoned(): return Poisoned()
def no_numbers(): return NoNumbers()
def silent_nan(): return SilentNaN()
def batchwise(): return Batchwise()
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    name = f"mistakes_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def run(*options, data="good", model="net"):
        options = [str(option) for option in options]
        chosen = ["--data", f"{name}:{data}", "--model", f"{name}:{model}", "--workers", "0", "--device", "cpu"]
        # Of 160 samples none is left over.
        chosen += [] if "--batch-size" in options else ["--batch-size", "32"]
        output = [] if "-o" in options else ["-o", "run"]
        return nm2trt_inline("train", *chosen, "--epochs", "2", *options, *output)

    yield run
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("nan_train", ["train sample 17: x holds nan at [3]"]),
        ("inf_test", ["test sample 5: x holds -inf at [3]"]),
        ("nan_lazy", ["train sample 99: x holds nan at [3]"]),
        ("own_raises", ["train: fetch raised OSError: [Errno 5] the disk is gone", "line"]),
        ("own_label", ["train sample 30: the label is 7, outside 0..3"]),
        ("own_nan", ["train sample 30: x holds nan at [1]"]),
        ("own_double", ["float64", "float32"]),
        ("own_nothing", ["fetch returned NoneType"]),
        ("task_raises", ["task Task: losses raised ValueError: no such loss"]),
        ("task_mean", ["losses returned [] and not [32]"]),
        ("task_detached", ["the loss depends on no parameter"]),
        ("task_score", ["score returned [40] and not [40, 2]"]),
        ("task_zero", ["the score is 0.0 of 0.0"]),
    ],
)
def test_data_and_tasks_are_named_with_the_sample_or_the_function(train, tmp_path, data, words):
    result = train(data=data)
    assert_one_error_line(result, 3, *words)
    assert "--lr" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("raises", 3, ["its forward pass raised ValueError: third batch", ".py, line"]),
        ("narrow", 3, ["its forward pass raised RuntimeError: mat1 and mat2", "mistakes_"]),
        ("pair", 2, ["returns tuple in training"]),
        ("frozen", 3, ["the loss depends on no parameter that is trained"]),
        ("extra", 3, ["'_extra_state', a dict, which a checkpoint of tensors cannot hold"]),
        ("ragged", 3, ["'graph' (float32), which safetensors cannot"]),
        ("poisoned", 3, ["1 of the 256 values of a.weight are NaN or infinite before training"]),
        ("no_numbers", 1, ["before the first update", "not at --lr"]),
    ],
)
def test_networks_are_named_before_an_epoch_is_lost(train, tmp_path, model, code, words):
    assert_one_error_line(train(model=model), code, *words)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_batch_norm_cannot_take_is_the_users_choice(train):
    result = train("--batch-size", "1", model="batchwise")
    assert_one_error_line(result, 3, "Expected more than 1 value per channel")


def test_tied_weights_are_saved_under_each_name(train, tmp_path):
    result = train(model="tied")
    assert result.returncode == 0, result.stderr
    with safe_open(str(tmp_path / "run" / "checkpoint.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        patterns = json.loads(file.metadata()["nm2trt.patterns"])
    assert torch.equal(tensors["a.weight"], tensors["b.weight"])
    assert torch.equal(tensors["top"], tensors["head.weight"][:2])
    assert patterns == {"a.weight": "2:4", "b.weight": "2:4"}
    assert nm2trt_inline("verify", tmp_path / "run").returncode == 0


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_loss_that_is_no_number_is_null_in_every_json(train, tmp_path):
    result = train(model="silent_nan")
    assert result.returncode == 0, result.stderr
    assert "the last epoch's loss is no number" in result.stdout
    assert strict((tmp_path / "run" / "run.json").read_text())["result"]["test_loss"] is None
    rows = [strict(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["test_loss"] for row in rows if row["kind"] == "epoch"] == [None, None]
    assert nm2trt_inline("train", "--resume", "-o", tmp_path / "run", "--json").returncode == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("-o", "file/run"), 2, ["file: is a file, and no folder can be made below it"]),
        (("-o", "file/a/b"), 2, ["file: is a file"]),
        (("-o", "x" * 300), 2, ["name too long"]),
        (("--seed", 2**32), 2, ["seed"]),
        (("--lr", "inf"), 2, ["lr = 'inf'", "finite"]),
        (("--decay", "nan"), 2, ["decay = 'nan'"]),
        (("--weight-decay", "-inf"), 2, ["weight_decay"]),
    ],
)
def test_paths_and_values_that_cannot_be(train, tmp_path, options, code, words):
    (tmp_path / "file").write_text("mine")
    result = train(*options)
    assert result.returncode == code
    for word in words:
        assert word.lower() in result.stderr.lower()
    assert (tmp_path / "file").read_text() == "mine"


def test_an_edited_configuration_is_refused_and_the_old_one_goes_on(train, tmp_path):
    from nm2trt.training.config import load_config
    from nm2trt.training.run import train as train_run

    class Cut(BaseException):
        pass

    def cut(_done, _of, words):
        if words.startswith("epoch 2"):
            raise Cut

    run = tmp_path / "cut"
    with pytest.raises(Cut):
        train_run(load_config(None, {"model": "mlp", "epochs": 3, "device": "cpu"}), run, progress=cut)
    path = run / "config.toml"
    good = path.read_text()
    for before, after in (("lr = 0.05", "lr = 0.5"), ("seed = 0", "seed = 1"), ('method = "sr-ste"', 'method = "ste"')):
        path.write_text(good.replace(before, after))
        assert path.read_text() != good
        result = nm2trt_inline("train", "--resume", "-o", run)
        assert_one_error_line(result, 2, "options differ from the original run", after.partition(" =")[0])
    path.write_text(good)
    assert nm2trt_inline("train", "--resume", "-o", run).returncode == 0


def test_other_data_is_refused_on_resume(tmp_path, monkeypatch):
    from nm2trt.training.config import load_config
    from nm2trt.training.run import train as train_run

    class Cut(BaseException):
        pass

    def cut(_done, _of, words):
        if words.startswith("epoch 2"):
            raise Cut

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "grown.py").write_text(
        "import pathlib, torch\n\n\ndef data():\n    count = int(pathlib.Path('count').read_text())\n"
        "    x, y = torch.arange(count * 8.0).view(count, 8) / 1000, torch.arange(count) % 4\n"
        "    sets = [torch.utils.data.TensorDataset(x, y) for _ in range(2)]\n"
        "    for one in sets:\n        one.targets = y\n    return tuple(sets)\n"
    )
    (tmp_path / "count").write_text("80")
    run = tmp_path / "cut"
    settings = {"model": "mlp", "data": "grown:data", "epochs": 3, "device": "cpu"}
    with pytest.raises(Cut):
        train_run(load_config(None, settings), run, progress=cut)
    (tmp_path / "count").write_text("96")
    result = nm2trt_inline("train", "--resume", "--trust", "-o", run)
    assert_one_error_line(result, 2, "data grown:data: the run was started with 80 train and 80 test samples, not 96")
    (tmp_path / "count").write_text("80")
    assert nm2trt_inline("train", "--resume", "--trust", "-o", run).returncode == 0


def test_stopped_before_training_it_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n\n\ndef data():\n    pathlib.Path('here').touch()\n    time.sleep(60)\n"
    )
    python, environment = forked_python({**os.environ, "OMP_NUM_THREADS": "1"})
    process = subprocess.Popen(
        [python, "-m", "nm2trt", "train", "--data", "slow:data", "-o", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "here").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nm2trt: error: run: interrupted before anything was saved; nothing was left" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()
