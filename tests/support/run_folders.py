"""Run folders made by code, so that tests of later stages need no training."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save

from nm2trt.artifacts import FileRecord, LayerRecord, ModelRecord, RunDocument, RunResult, host_record
from nm2trt.models import build_model

DIGITS = (1, 8, 8)


def prune_slowly(w, keep=2, group=4):
    """Zero all but the `keep` largest of each `group` along axis 1, one weight at a time."""
    w = w.clone()
    flat = w.reshape(w.shape[0], w.shape[1], -1)
    for o in range(flat.shape[0]):
        for p in range(flat.shape[2]):
            for start in range(0, flat.shape[1], group):
                order = sorted(range(start, start + group), key=lambda i: -abs(float(flat[o, i, p])))
                for i in order[keep:]:
                    flat[o, i, p] = 0
    return w


def random_network(name, seed=0, shape=DIGITS, classes=10):
    """A network whose BatchNorm layers are far from the identity, so that a wrong fold shows."""
    torch.manual_seed(seed)
    module = build_model(name, shape, classes).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.5, 0.5),
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
            ):
                tensor.uniform_(low, high)
    return module


def sparse_names(module):
    """Weights that a 2:4 run would prune: all but the stem and the classifier."""
    return [
        name
        for name, tensor in module.named_parameters()
        if tensor.ndim > 1 and tensor.shape[1] % 4 == 0 and not name.startswith(("fc.", "head."))
    ]


def make_run(folder, name="mlp", *, sparse=True, seed=0, data="digits", write_checkpoint=True):
    """Write a run folder as `nm2trt train` would; returns the network."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    module = random_network(name, seed)
    pruned = sparse_names(module) if sparse else []
    with torch.no_grad():
        for parameter in pruned:
            module.get_parameter(parameter).copy_(prune_slowly(module.get_parameter(parameter)))
    content = save({key: tensor.contiguous() for key, tensor in module.state_dict().items()})
    if write_checkpoint:
        (folder / "checkpoint.safetensors").write_bytes(content)
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    RunDocument(
        config={},
        method="sr-ste" if sparse else "dense",
        pattern="2:4" if sparse else None,
        data=data,
        data_source="test",
        train_samples=1,
        test_samples=1,
        model=ModelRecord(name=name, input_shape=DIGITS, classes=10, parameters=1),
        result=RunResult(test_score=0.5, test_loss=1.0, train_loss=1.0, epochs=1, steps=1, seconds=1.0, sad=None),
        layers=[
            LayerRecord(
                name=parameter,
                module=parameter.rpartition(".")[0],
                kind="Linear",
                shape=tuple(tensor.shape),
                pattern="2:4" if parameter in pruned else None,
                reason="",
            )
            for parameter, tensor in module.named_parameters()
            if tensor.ndim > 1
        ],
        device="cpu",
        files={"checkpoint.safetensors": record},
        host=host_record(),
    ).write(folder)
    return module
