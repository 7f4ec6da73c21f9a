"""The GitHub Actions example: its command lines are ones that nm2trt understands, and they fail what they should."""

import re
import shlex

import numpy as np
import pytest
from helpers import REPOSITORY, nm2trt_inline
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.numpy import save_file

from nm2trt.cli.verify import command
from nm2trt.pattern import NMPattern, mask

WORKFLOW = REPOSITORY / "examples" / "ci" / "nm2trt-verify.yml"


def command_lines():
    """`- run:` entries that call nm2trt, with YAML's folded lines joined (there is no YAML reader among the needs)."""
    text = re.sub(r">-\n\s+", "", WORKFLOW.read_text())
    text = re.sub(r"\n\s+(?=--)", " ", text)
    return [line.removeprefix("nm2trt ") for line in re.findall(r"- run: (nm2trt .*)", text)]


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(*, sparse):
        weight = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)
        if sparse:
            weight *= mask(weight, NMPattern(2, 4), 1)
        save_file(
            {"layer1.0.weight": weight, "fc.weight": np.ones((4, 8), np.float32)}, "models/checkpoint.safetensors"
        )
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "layer1.0.weight"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
            [],
            [numpy_helper.from_array(weight, "layer1.0.weight")],
        )
        save(helper.make_model(graph), "models/model.onnx")

    return write


def test_there_are_command_lines_and_they_parse():
    lines = command_lines()
    assert len(lines) == 2
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "verify"
        # Raises on unknown options and missing values.
        command.make_context(name, arguments)


def test_the_build_fails_when_the_pattern_is_lost(models, tmp_path):
    models(sparse=True)
    assert [nm2trt_inline(*shlex.split(line)).returncode for line in command_lines()] == [0, 0]
    models(sparse=False)
    assert [nm2trt_inline(*shlex.split(line)).returncode for line in command_lines()] == [1, 1]
    assert (tmp_path / "sparsity.png").read_bytes().startswith(b"\x89PNG")
    assert "<failure" in (tmp_path / "sparsity.xml").read_text()
