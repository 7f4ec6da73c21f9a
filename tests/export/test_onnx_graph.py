"""The oracle is torch with BatchNorm unfused, numpy by hand, and loops over groups."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from run_folders import DIGITS, prune_slowly, random_network, sparse_names
from torch import nn

from nm2trt.errors import InputError
from nm2trt.export import onnx_bytes, onnx_from_module, ports


def exported(module, precision="fp32", shape=DIGITS, **options):
    return onnx.load_from_string(onnx_bytes(onnx_from_module(module, shape, precision=precision, **options)))


def initializers(model):
    return {tensor.name: tensor for tensor in model.graph.initializer}


def outputs(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


@pytest.fixture(scope="module")
def sparse_resnet():
    module = random_network("resnet8")
    with torch.no_grad():
        for name in sparse_names(module):
            module.get_parameter(name).copy_(prune_slowly(module.get_parameter(name)))
    return module


@pytest.fixture(scope="module")
def models(sparse_resnet):
    patterns = dict.fromkeys(sparse_names(sparse_resnet), "2:4")
    return {
        precision: exported(sparse_resnet, precision, patterns=patterns, method="sr-ste")
        for precision in ("fp32", "fp16", "bf16")
    }


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 1e-2)])
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_outputs_equal_torch_at_any_batch(sparse_resnet, models, precision, bound, batch):
    x = np.random.default_rng(batch).standard_normal((batch, *DIGITS)).astype(np.float32)
    with torch.no_grad():
        expected = sparse_resnet(torch.from_numpy(x)).numpy()
    found = outputs(models[precision], x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_group_of_four_input_channels_keeps_two(sparse_resnet, models, precision):
    tensors = initializers(models[precision])
    wanted = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    for name in sparse_names(sparse_resnet):
        assert tensors[name].data_type == wanted[precision]
        w_OIHW = numpy_helper.to_array(tensors[name]).astype(np.float32)
        for o in range(w_OIHW.shape[0]):
            for start in range(0, w_OIHW.shape[1], 4):
                for h in range(w_OIHW.shape[2]):
                    for v in range(w_OIHW.shape[3]):
                        kept = sum(1 for i in range(start, start + 4) if w_OIHW[o, i, h, v] != 0)
                        assert kept <= 2, (name, o, start, h, v)


def test_batch_norm_is_folded_as_by_hand_before_rounding(sparse_resnet, models):
    assert not [node.op_type for node in models["fp32"].graph.node if node.op_type == "BatchNormalization"]
    norm = sparse_resnet.bn1
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().double().numpy()
    folded = sparse_resnet.conv1.weight.detach().double().numpy() * scale[:, None, None, None]
    found = numpy_helper.to_array(initializers(models["fp32"])["conv1.weight"])
    np.testing.assert_allclose(found, folded, rtol=1e-6)
    half = numpy_helper.to_array(initializers(models["fp16"])["conv1.weight"])
    # One rounding to 11 bits; folding after the cast would round the scale as well.
    np.testing.assert_allclose(half.astype(np.float64), folded, rtol=2.0**-11 * 1.001, atol=2.0**-24)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_names_are_the_state_dicts(sparse_resnet, models, precision):
    names = set(initializers(models[precision]))
    weights = {name for name, tensor in sparse_resnet.named_parameters() if tensor.ndim > 1}
    assert weights <= names
    assert not [name for name in names if name.startswith("net.")]
    node_of = {node.input[1]: node.name for node in models[precision].graph.node if node.op_type in ("Conv", "Gemm")}
    assert node_of["layers.1.0.shortcut.0.weight"] == "layers.1.0.shortcut.0"
    nodes = [node.name for node in models[precision].graph.node]
    assert len(set(nodes)) == len(nodes)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_metadata_says_what_was_meant_and_nothing_of_this_machine(models, precision):
    metadata = {entry.key: entry.value for entry in models[precision].metadata_props}
    assert json.loads(metadata["nm2trt.patterns"])["layers.0.0.conv1.weight"] == "2:4"
    assert metadata["nm2trt.method"] == "sr-ste"
    content = models[precision].SerializeToString()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_ports_keep_the_batch_dynamic_and_float32_outside():
    model = onnx_from_module(random_network("mlp"), DIGITS, precision="fp16")
    assert ports(model) == [
        ("input", "float32", ("batch", 1, 8, 8)),
        ("logits", "float32", ("batch", 10)),
    ]


def test_the_callers_network_is_not_changed(sparse_resnet):
    before = {name: tensor.clone() for name, tensor in sparse_resnet.state_dict().items()}
    exported(sparse_resnet, "fp16")
    for name, tensor in sparse_resnet.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


def test_export_is_the_same_file_twice():
    module = random_network("mlp")
    assert exported(module).SerializeToString() == exported(module).SerializeToString()


def test_nothing_is_printed(capfd):
    exported(random_network("mlp"), "fp16")
    assert capfd.readouterr() == ("", "")


class Untraceable(nn.Module):
    """torch.fx cannot trace it, torch.export can: shapes decide."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        if x.shape[1] == 4 and len([*x.shape]) > 3:
            x = self.bn(self.conv(x))
        return x.mean((2, 3))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_network_that_fx_cannot_trace_is_exported_all_the_same(precision):
    model = exported(Untraceable().eval(), precision, (4, 3, 3))
    wanted = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    assert initializers(model)["conv.weight"].data_type == wanted[precision]


class DataDependent(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) > 0 else -x


def test_what_torch_cannot_export_is_one_line():
    with pytest.raises(InputError, match="torch cannot export the network") as caught:
        onnx_from_module(DataDependent(), (3,))
    assert "\n" not in str(caught.value)


def test_a_pattern_for_a_weight_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"ghost\.weight"):
        onnx_from_module(random_network("mlp"), DIGITS, patterns={"ghost.weight": "2:4"})
