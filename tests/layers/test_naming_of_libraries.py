"""Networks of torchvision and transformers: the classes of their modules say what the names are to be taken for."""

import json

import pytest
import torch
from torch import nn

from nm2trt.layers.checkpoint import StoredTensor, layers_of, neighbors_of
from nm2trt.layers.config_json import read_config
from nm2trt.prune.naming import classifiers_of

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.MultiheadAttention, nn.RNNBase)
VISION = {
    "alexnet": {"classifier.6.weight"},
    "resnet18": {"fc.weight"},
    "densenet121": {"classifier.weight"},
    "inception_v3": {"AuxLogits.fc.weight", "fc.weight"},
    "squeezenet1_0": {"classifier.1.weight"},
    "mobilenet_v3_small": {"classifier.3.weight"},
    "swin_t": {"head.weight"},
    "vit_b_32": {"heads.head.weight"},
    "maxvit_t": {"classifier.5.weight"},
    "segmentation.fcn_resnet50": {"classifier.4.weight"},
    "segmentation.deeplabv3_mobilenet_v3_large": {"classifier.4.weight"},
    "detection.retinanet_resnet50_fpn": {
        "head.classification_head.cls_logits.weight",
        "head.regression_head.bbox_reg.weight",
    },
}
TRANSFORMERS = ["bert", "t5", "opt", "llama", "falcon", "clip", "whisper", "decision_transformer", "gpt_bigcode", "phi"]
CONV1D = ["gpt2", "openai-gpt", "imagegpt"]


def layers_and_owners(module, config=None):
    owners = {
        f"{name}.{parameter}" if name else parameter: owner
        for name, owner in module.named_modules()
        for parameter, _ in owner.named_parameters(recurse=False)
    }
    tensors = [
        StoredTensor(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: None)
        for name, tensor in module.state_dict().items()
    ]
    return list(layers_of(tensors, neighbors_of(tensors, config))), owners


def assert_taken_for_what_they_are(layers, owners, transposed=()):
    for layer in layers:
        owner = owners.get(layer.name)
        weighted = isinstance(owner, (*WEIGHTED, *transposed)) and "weight" in layer.name and len(layer.shape) > 1
        taken = layer.reduction_axis is not None and not layer.not_checked
        depthwise = layer.reason is not None and layer.reason.code == "depthwise"
        assert taken or depthwise if weighted else not taken, (layer.name, layer.shape, layer.why_not)
        if taken:
            first = isinstance(owner, (nn.ConvTranspose2d, *transposed))
            assert layer.reduction_axis == (0 if first else 1) or layer.shape[0] == layer.shape[1], layer.name


@pytest.mark.parametrize("name", VISION)
def test_torchvision(name):
    models = pytest.importorskip("torchvision").models
    family, _, last = name.rpartition(".")
    make = getattr(getattr(models, family) if family else models, last)
    with torch.device("meta"):
        module = make(weights=None, **({"weights_backbone": None} if family else {}))
    layers, owners = layers_and_owners(module)
    assert_taken_for_what_they_are(layers, owners)
    assert classifiers_of(layers) == VISION[name]


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("name", [*TRANSFORMERS, *CONV1D])
def test_transformers(name, with_config, tmp_path):
    transformers = pytest.importorskip("transformers")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    config = transformers.AutoConfig.for_model(name)
    with torch.device("meta"):
        module = transformers.AutoModel.from_config(config)
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "torch_dtype": None}, default=str))
    layers, owners = layers_and_owners(module, read_config(tmp_path / "model.safetensors") if with_config else None)
    assert_taken_for_what_they_are(layers, owners, (conv1d,))
    along_inputs = any(layer.reduction_axis == 0 for layer in layers)
    assert along_inputs == (name in (*CONV1D, "decision_transformer"))
