import hashlib
import json

import pytest
import torch
from run_folders import make_run
from safetensors.torch import load_file, save_file

from nm2trt.errors import InputError
from nm2trt.export import load_run


def resign(folder):
    """Make run.json name the checkpoint that lies there, as a careless user might."""
    content = (folder / "checkpoint.safetensors").read_bytes()
    document = json.loads((folder / "run.json").read_text())
    record = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    document["files"]["checkpoint.safetensors"] = record
    (folder / "run.json").write_text(json.dumps(document))


def change(folder, edit):
    path = folder / "checkpoint.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    resign(folder)


def test_a_run_comes_back_with_its_weights_and_patterns(tmp_path):
    trained = make_run(tmp_path / "run", "resnet8")
    source = load_run(tmp_path / "run")
    assert not source.module.training
    for name, tensor in trained.state_dict().items():
        assert torch.equal(source.module.state_dict()[name], tensor)
    assert source.patterns["layers.0.0.conv1.weight"] == "2:4"
    assert "fc.weight" not in source.patterns
    assert (source.record.kind, source.record.name, source.record.method) == ("run", "run", "sr-ste")
    assert (source.data, source.input_shape) == ("digits", (1, 8, 8))


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    make_run(tmp_path / "run")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_run(tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_a_changed_checkpoint_is_refused_and_both_sums_are_named(tmp_path):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    written = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError) as caught:
        load_run(tmp_path / "run")
    assert written in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_one_line(tmp_path, size):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="cut after training"):
        load_run(tmp_path / "run")
    resign(tmp_path / "run")
    with pytest.raises(InputError, match="no readable safetensors") as caught:
        load_run(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_no_checkpoint_no_entry_no_run(tmp_path):
    make_run(tmp_path / "run", write_checkpoint=False)
    with pytest.raises(InputError, match=r"has no checkpoint\.safetensors"):
        load_run(tmp_path / "run")
    make_run(tmp_path / "other")
    document = json.loads((tmp_path / "other" / "run.json").read_text())
    document["files"] = {}
    (tmp_path / "other" / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="does not list"):
        load_run(tmp_path / "other")
    with pytest.raises(InputError, match=r"no run\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda tensors: tensors.pop("head.bias"), "lacks head.bias"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "holds extra"),
        (lambda tensors: tensors.update({"head.bias": torch.ones(3)}), r"head.bias is \[3\] and not \[10\]"),
    ],
)
def test_a_checkpoint_of_another_network_is_named(tmp_path, edit, words):
    make_run(tmp_path / "run")
    change(tmp_path / "run", edit)
    with pytest.raises(InputError, match=words):
        load_run(tmp_path / "run")


def test_an_unknown_model_is_the_inputs_fault(tmp_path):
    make_run(tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    document["model"]["name"] = "resnet9000"
    (tmp_path / "run" / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="resnet9000"):
        load_run(tmp_path / "run")
