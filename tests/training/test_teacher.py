"""Distillation: the loss against its definition, the teacher left alone, and what is no teacher."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from helpers import assert_one_error_line, examples, nm2trt_inline
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.artifacts import RunDocument
from nm2trt.data import load_data
from nm2trt.errors import InputError
from nm2trt.training.config import load_config
from nm2trt.training.interruption import InterruptedRunError
from nm2trt.training.run import train
from nm2trt.training.teacher import distillation_divergence, load_teacher

COMMON = {"model": "mlp", "epochs": 3, "device": "cpu", "lr": 0.1}


def slow_divergence(student, teacher, temperature):
    """T^2 * sum p log(p / q) for each position, p the teacher's and q the student's, in numpy."""
    total, count = 0.0, 0
    for s, t in zip(student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1]), strict=True):
        p = np.exp(t / temperature - np.logaddexp.reduce(t / temperature))
        q = np.exp(s / temperature - np.logaddexp.reduce(s / temperature))
        total, count = total + temperature**2 * (p * np.log(p / q)).sum(), count + 1
    return total / count


@examples(30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 2), (3, 10), (2, 5, 7)]),
    st.floats(0.5, 8),
)
def test_the_divergence_is_its_definition(seed, shape, temperature):
    student, teacher = (np.random.default_rng(seed + i).normal(0, 3, shape) for i in range(2))
    found = distillation_divergence(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert found.item() == pytest.approx(slow_divergence(student, teacher, temperature), rel=1e-9, abs=1e-12)
    half = distillation_divergence(torch.from_numpy(student).half(), torch.from_numpy(teacher).half(), temperature)
    assert half.dtype == torch.float32


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "dense"
    train(load_config(None, COMMON | {"method": "dense"}), folder)
    return folder


def test_the_first_loss_is_the_weighted_sum_and_the_start_is_the_same(dense):
    data = load_data("digits", None)
    torch.manual_seed(0)
    config = load_config(None, COMMON | {"teacher": dense, "teacher_weight": 0.25, "teacher_temperature": 2.0})
    state = torch.get_rng_state()
    teacher = load_teacher(config, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert not teacher.network.training
    student, answer = torch.randn(4, 10), torch.randn(4, 10)
    expected = 0.25 * slow_divergence(student.double().numpy(), answer.double().numpy(), 2.0) + 0.75 * 3.0
    assert teacher.loss(student, answer, torch.tensor(3.0)).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="same outputs"):
        teacher.loss(student, answer[:, :9], torch.tensor(3.0))


def test_a_run_learns_from_a_run_or_a_checkpoint_and_records_it(dense, tmp_path):
    before = (dense / "checkpoint.safetensors").read_bytes()
    documents = [
        train(load_config(None, COMMON | {"teacher": path, "teacher_weight": 1.0}), tmp_path / name)
        for name, path in (("run", dense), ("file", dense / "checkpoint.safetensors"))
    ]
    assert (dense / "checkpoint.safetensors").read_bytes() == before
    same = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("run", "file")]
    assert same[0] == same[1]
    assert documents[0].teacher.name == "dense"
    assert documents[0].teacher.checkpoint_sha256 == documents[1].teacher.checkpoint_sha256
    assert documents[0].config["teacher"] == "dense"
    # Taught by the teacher alone, it never sees a label and still learns to read.
    assert documents[0].result.test_score > 0.5


def test_another_architecture_of_the_same_classes_teaches(dense, tmp_path):
    document = train(load_config(None, COMMON | {"model": "resnet8", "epochs": 2, "teacher": dense}), tmp_path / "run")
    assert document.teacher.model == "mlp"


def test_a_taught_run_goes_on_where_it_was_stopped(dense, tmp_path):
    config = load_config(None, COMMON | {"teacher": dense})
    train(config, tmp_path / "alone")

    def stop(done, _of, _words):
        if done >= 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        train(config, tmp_path / "turns", progress=stop)
    train(config, tmp_path / "turns", resume=True)
    files = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("alone", "turns")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--teacher", "nowhere"], 3, "no such checkpoint"),
        (["--teacher", "."], 3, "run.json"),
        (["--teacher-weight", "0.5"], 2, "go with a teacher"),
        (["--teacher", "x", "--teacher-weight", "2", "--teacher-temperature", "0"], 2, "2 mistakes"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = nm2trt_inline("train", "--model", "mlp", "--epochs", "2", *options, "-o", "run")
    assert_one_error_line(result, code, words)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_data_or_code_is_refused(dense, tmp_path):
    data = load_data("digits", None)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("run.json", "checkpoint.safetensors"):
        (other / name).write_bytes((dense / name).read_bytes())
    config = load_config(None, COMMON | {"teacher": other})
    content = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**content, "model": {**content["model"], "classes": 7}}))
    with pytest.raises(InputError, match="tells 7 classes apart"):
        load_teacher(config, data)
    (other / "run.json").write_text(json.dumps({**content, "model": {**content["model"], "name": "evil:net"}}))
    with pytest.raises(InputError, match="names code"):
        load_teacher(config, data)
    assert dataclasses.is_dataclass(load_teacher(load_config(None, COMMON | {"teacher": dense}), data))
    assert RunDocument.read(dense).teacher is None
