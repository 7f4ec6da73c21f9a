"""`examples/detector.py` as a user runs it: a head shared by three levels, six outputs, 2:4 in the ONNX file."""

import runpy
import sys

import numpy as np
import onnx
import pytest
import torch
from helpers import REPOSITORY, nm2trt_inline
from onnx import numpy_helper

EXAMPLES = REPOSITORY / "examples"
OUTPUTS = [f"{kind}_{stride}" for stride in (8, 16, 32) for kind in ("classes", "distances")]


@pytest.fixture
def example(monkeypatch, capsys):
    """The script as `python examples/detector.py` runs it, without a second import of its libraries."""

    def run(folder, *options):
        script = str(EXAMPLES / "detector.py")
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [script, "-o", str(folder), "--test-scenes", "20", *options])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def most_kept(weight):
    groups = np.moveaxis(weight, 1, -1)
    return int((groups.reshape(*groups.shape[:-1], -1, 4) != 0).sum(-1).max())


@pytest.mark.slow
def test_a_detector_is_trained_and_exported_sparse(tmp_path, example):
    printed = example(tmp_path, "--steps", "8")
    losses = [float(line.split("loss ")[1]) for line in printed if line.startswith("step ")]
    assert losses[-1] < losses[0]
    assert "19 of 22 weights are meant to be sparse" in printed
    assert [line.split()[1] for line in printed if line.startswith("dense: ")] == [
        "backbone.body.conv1.weight", "classes.weight", "distances.weight",
    ]  # fmt: skip

    path = tmp_path / "build" / "model.onnx"
    graph = onnx.load(path).graph
    assert [output.name for output in graph.output] == OUTPUTS
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer if len(one.dims) == 4}
    assert sorted(name for name, value in weights.items() if value.shape[1] % 4) == ["backbone.body.conv1.weight"]
    kept = {name: most_kept(value) for name, value in weights.items() if value.shape[1] % 4 == 0}
    assert {name for name, most in kept.items() if most > 2} == {"classes.weight", "distances.weight"}
    assert len(kept) == 21
    uses = [node for node in graph.node if "tower.0.weight" in node.input]
    assert len(uses) == 3, "the head is shared by the three levels"
    result = nm2trt_inline("verify", path, "--require", "tower.*", "--require", "backbone.fpn.*", "--json")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_score_of_a_perfect_detector_is_one(monkeypatch):
    """Outputs that are made from the truth by the rule of assignment get it back."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import detector

    images, truths = detector.draw_scenes(40, seed=3)
    places = detector.all_places()
    found = {"classes": [], "distances": []}
    for boxes, classes in truths:
        assigned = detector.assign(places, (boxes, classes))
        assert set(assigned.tolist()) - {-1} == set(range(len(boxes))), "every rectangle has a place that finds it"
        logits = torch.full((len(places), 3), -9.0)
        logits[assigned >= 0, classes[assigned[assigned >= 0]]] = 9.0
        box = boxes[assigned.clamp(min=0)]
        found["classes"].append(logits)
        found["distances"].append(torch.cat([places[:, :2] - box[:, :2], box[:, 2:] - places[:, :2]], 1))
    outputs, start = {}, 0
    for stride in detector.STRIDES:
        side = detector.SIDE // stride
        for kind, rows in found.items():
            part = torch.stack(rows)[:, start : start + side * side]
            outputs[f"{kind}_{stride}"] = part.transpose(1, 2).unflatten(2, (side, side))
        start += side * side

    class Perfect(torch.nn.Module):
        def forward(self, _):
            return outputs

    assert detector.score(Perfect(), images, truths) == "recall 1.000, precision 1.000, mean IoU 1.000"
