"""`nm2trt prune` as a user runs it."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

PEERS_VARIABLE = "NM2TRT_PEERS"


@pytest.fixture
def checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.safetensors"
    save_file(
        {
            "conv1.weight": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
            "layer1.weight": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
            "fc.weight": rng.standard_normal((10, 8)).astype(np.float32),
        },
        path,
        metadata={"format": "pt"},
    )
    return path


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """MobileNetV3 as the exporter writes it: squeeze-excite, depthwise, residuals."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path_factory.mktemp("mobilenet") / "m.onnx"
    torch.manual_seed(0)
    module = torchvision.models.mobilenet_v3_small().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.randn(1, 3, 32, 32),), path, dynamo=True, external_data=False, verbose=False)
    return path


def test_prints_what_was_kept_and_why_the_rest_stayed(checkpoint, tmp_path):
    out = tmp_path / "b.safetensors"
    result = nm2trt("prune", checkpoint, "--pattern", "2:4", "-o", out)
    assert (result.returncode, result.stderr) == (0, "")
    assert "layer1.weight" in result.stdout
    assert "dense: conv1.weight: reduction axis of 3 is shorter than M = 4" in result.stdout
    assert "dense: fc.weight: the classifier, by its name; name it with --layer to prune it" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"PASS {out}: 1 tensors pruned to 2:4 and verified")
    before, after = load_file(checkpoint), load_file(out)
    assert np.array_equal(before["fc.weight"], after["fc.weight"])
    assert np.count_nonzero(after["layer1.weight"]) == before["layer1.weight"].size // 2
    assert nm2trt("verify", out).returncode == 0


def test_json_is_one_document(checkpoint, tmp_path):
    out = tmp_path / "b.safetensors"
    result = nm2trt("prune", checkpoint, "--pattern", "2:4", "--layer", "fc=1:4", "-o", out, "--json")
    document = json.loads(result.stdout)
    assert (result.returncode, document["schema"], document["verdict"]) == (0, "nm2trt.prune/1", "pass")
    assert {row["name"]: row["pattern"] for row in document["layers"]} == {
        "conv1.weight": None,
        "layer1.weight": "2:4",
        "fc.weight": "1:4",
    }
    for row in document["layers"]:
        if row["pattern"]:
            assert 0 < row["kept"] == row["kept_unpermuted"] <= row["kept_unstructured"] <= 1


def test_outputs_are_never_overwritten_by_accident(checkpoint, tmp_path):
    out = tmp_path / "b.safetensors"
    out.write_bytes(b"precious")
    before = checkpoint.read_bytes()
    assert_one_error_line(nm2trt_inline("prune", checkpoint, "-o", out), 2, "exists", "--force")
    assert out.read_bytes() == b"precious"
    assert_one_error_line(nm2trt_inline("prune", checkpoint, "-o", checkpoint, "--force"), 2, "the output is the input")
    (tmp_path / "link.safetensors").symlink_to(checkpoint)
    assert_one_error_line(nm2trt_inline("prune", checkpoint, "-o", tmp_path / "link.safetensors", "--force"), 2)
    assert_one_error_line(nm2trt_inline("prune", checkpoint, "-o", tmp_path / "b.onnx"), 2, "b.safetensors")
    assert_one_error_line(
        nm2trt_inline("prune", checkpoint, "-o", tmp_path / "no" / "b.safetensors"), 2, "no such folder"
    )
    assert checkpoint.read_bytes() == before
    assert nm2trt_inline("prune", checkpoint, "-o", out, "--force").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "link.safetensors"]


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        (("--pattern", "4:2"), 2, "4:2"),
        (("--layer", "fc"), 2, "GLOB=N:M"),
        (("--layer", "gone*=2:4"), 2, "no layer matches 'gone*'"),
        (("--exclude", "gone"), 2, "no layer matches 'gone'"),
        (("--layer", "conv1=2:4"), 2, "reduction axis of 3"),
        (("--exclude", "*"), 3, "no weight can be pruned"),
        (("--pattern", "1:16"), 3, "no weight can be pruned"),
        (("--permute",), 3, "export it to ONNX"),
    ],
)
def test_wrong_options(checkpoint, tmp_path, options, exit_code, words):
    result = nm2trt_inline("prune", checkpoint, "-o", tmp_path / "b.safetensors", *options)
    assert_one_error_line(result, exit_code, words)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_inputs_that_cannot_be_used(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones((4, 8)))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    assert_one_error_line(nm2trt_inline("prune", tmp_path / "a.npz", "-o", tmp_path / "b.npz"), 3, "not written")
    for name in ("cut.safetensors", "gone.onnx"):
        out = tmp_path / f"b{Path(name).suffix}"
        assert_one_error_line(nm2trt_inline("prune", tmp_path / name, "-o", out), 3, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "cut.safetensors"]


def test_a_real_network_keeps_more_when_permuted(mobilenet, tmp_path):
    out = tmp_path / "p.onnx"
    arguments = ("prune", mobilenet, "--pattern", "2:4", "--permute", "--permute-seconds", "2", "--force", "--json")
    result = nm2trt_inline(*arguments, "-o", out)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    totals, permutation = document["totals"], document["permutation"]
    assert permutation["outputs"] == "agree"
    assert all(group["permuted"] for group in permutation["groups"])
    assert totals["kept_unpermuted"] < totals["kept"] < totals["kept_unstructured"]
    gap = totals["kept_unstructured"] - totals["kept_unpermuted"]
    assert (totals["kept"] - totals["kept_unpermuted"]) / gap > 0.15
    first = out.read_bytes()
    assert nm2trt_inline(*arguments, "-o", out).returncode == 0
    assert out.read_bytes() == first, "deterministic"
    before, after = onnx.load(mobilenet), onnx.load(out)
    for model in (before, after):
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def test_third_party_graphs(tmp_path):
    folder = os.environ.get(PEERS_VARIABLE)
    if not folder:
        pytest.skip(
            f"missing: {PEERS_VARIABLE}, a folder with rapidocr-onnxruntime or magika installed by pip --target"
        )
    files = sorted(Path(folder).rglob("*.onnx"))
    assert files, f"{folder} holds no ONNX file"
    for index, file in enumerate(files):
        out = tmp_path / f"{index}.onnx"
        result = nm2trt_inline("prune", file, "-o", out, "--permute", "--permute-seconds", "1", "--json")
        assert result.returncode == 0, (file, result.stderr, result.stdout[-500:])
        document = json.loads(result.stdout)
        assert document["permutation"]["outputs"] != "differ"
        dense = {row["name"] for row in document["layers"] if row["pattern"] is None}
        before, after = onnx.load(file), onnx.load(out)
        assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
        for left, right in zip(before.graph.initializer, after.graph.initializer, strict=True):
            if left.name in dense:
                sizes = [np.sort(numpy_helper.to_array(tensor).reshape(-1)) for tensor in (left, right)]
                assert np.array_equal(*sizes), "dense weights lose nothing"
