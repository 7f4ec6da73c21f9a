"""Weights that the exporter reads through a Transpose, a mask or a slice: plain initializers with torch's names."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from run_folders import prune_slowly
from torch import nn
from torch.nn.utils import prune

from nm2trt.artifacts import BatchRange
from nm2trt.errors import InputError
from nm2trt.export import (
    InputSpec,
    OnnxReference,
    check_numerics,
    noise,
    onnx_bytes,
    onnx_from_module,
    write_onnx,
)
from nm2trt.models import build_model
from nm2trt.verify import verify_path

FEATURES = (6, 8)


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def exported(module, inputs, **options):
    return onnx.load_from_string(onnx_bytes(onnx_from_module(module.eval(), inputs, **options)))


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    # ONNX Runtime 1.31's extended optimizations crash on one of these graphs, in a process that ran others.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    module = build_model("encoder-small", FEATURES, 12)
    pruned = [
        name
        for name, tensor in module.named_parameters()
        if tensor.ndim == 2 and name.startswith("blocks.") and not name.endswith("norm.weight")
    ]
    with torch.no_grad():
        for name in pruned:
            module.get_parameter(name).copy_(prune_slowly(module.get_parameter(name)))
    return module, pruned


def test_an_encoder_keeps_its_pattern_under_torchs_names(encoder, tmp_path):
    module, pruned = encoder
    assert "blocks.0.attention.in_proj_weight" in pruned
    model = exported(module, FEATURES, precision="fp16", patterns=dict.fromkeys(pruned, "2:4"))
    onnx.save(model, tmp_path / "m.onnx")
    checked = verify_path(tmp_path / "m.onnx")
    assert checked.verdict == "pass", checked.problems
    layers = {layer.name: layer for layer in checked.layers}
    assert {name for name, layer in layers.items() if layer.verdict == "conforms"} == set(pruned)
    assert all(layers[name].tensorrt == "eligible" for name in pruned)
    assert layers["blocks.0.attention.in_proj_weight"].node == "blocks.0.attention.in_proj"
    assert layers["blocks.2.down.weight"].node == "blocks.2.down"
    # No weight is behind another node: the operator reads the initializer.
    names = set(initializers(model))
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert {node.input[1] for node in products} & names == names & {layer.name for layer in checked.layers}


def test_the_transposed_weight_is_the_parameter(encoder):
    module, _ = encoder
    tensors = initializers(exported(module, FEATURES))
    found = tensors["blocks.1.up.weight"]
    expected = module.blocks[1].up.weight.detach().numpy()
    assert found.shape == (expected.shape[1], expected.shape[0])
    assert np.array_equal(found.T, expected)


@pytest.mark.parametrize("batch", [1, 5])
def test_an_encoder_computes_the_same(encoder, batch):
    module, _ = encoder
    x = np.random.default_rng(batch).standard_normal((batch, *FEATURES)).astype(np.float32)
    found = run(exported(module, FEATURES), {"input": x})[0]
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Crossed(nn.Module):
    """Queries and keys of different origin: torch slices the packed projection; one table is used twice."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids, memory, mask):
        y = self.table(ids)
        y, _ = self.attention(y, memory, memory, key_padding_mask=mask == 0, need_weights=False)
        return {"logits": self.head(y), "pooled": y.mean(1)}


CROSSED = (
    InputSpec(name="ids", shape=(5,), dtype="int64", keyword=True),
    InputSpec(name="memory", shape=(3, 8), keyword=True),
    InputSpec(name="mask", shape=(3,), dtype="int64", keyword=True),
)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_several_inputs_and_outputs_keep_names_types_and_values(precision):
    torch.manual_seed(0)
    module = Crossed().eval()
    model = exported(module, CROSSED, precision=precision)
    assert [port.name for port in model.graph.input] == ["ids", "memory", "mask"]
    assert [port.name for port in model.graph.output] == ["logits", "pooled"]
    random = np.random.default_rng(0)
    feeds = {
        "ids": random.integers(0, 20, (4, 5)),
        "memory": random.standard_normal((4, 3, 8)).astype(np.float32),
        "mask": np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]),
    }
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    for found, wanted in zip(run(model, feeds), expected.values(), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5 if precision == "fp32" else 5e-3)


def test_a_table_that_is_also_a_head_has_both_names():
    torch.manual_seed(0)
    module = Crossed().eval()
    tensors = initializers(exported(module, CROSSED))
    table = module.table.weight.detach().numpy()
    assert np.array_equal(tensors["table.weight"], table)
    assert np.array_equal(tensors["head.weight"], table.T)
    slices = [array for name, array in tensors.items() if name.startswith("attention.in_proj_weight")]
    packed = module.attention.in_proj_weight.detach().numpy()
    assert np.array_equal(np.concatenate([array.T for array in slices]), packed)


def test_a_mask_is_multiplied_in_and_the_weight_keeps_its_name(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    pattern = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4, 2)
    prune.custom_from_mask(module[0], "weight", pattern)
    model = exported(module, (8,), patterns={"0.weight_orig": "2:4"})
    found = initializers(model)["0.weight"]
    expected = (module[0].weight_orig * pattern).detach().numpy()
    assert np.array_equal(found, expected) or np.array_equal(found.T, expected)
    onnx.save(model, tmp_path / "m.onnx")
    assert verify_path(tmp_path / "m.onnx").verdict == "pass"


def test_bert_keeps_every_linear(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        attn_implementation="eager",
    )
    module = transformers.BertModel(config).eval()
    linears = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for name in linears:
            module.get_parameter(name).copy_(prune_slowly(module.get_parameter(name)))
    inputs = tuple(
        InputSpec(name=name, shape=(8,), dtype="int64", keyword=True) for name in ("input_ids", "attention_mask")
    )
    model = exported(module, inputs, precision="fp16", patterns=dict.fromkeys(linears, "2:4"))
    onnx.save(model, tmp_path / "m.onnx")
    checked = verify_path(tmp_path / "m.onnx")
    assert checked.verdict == "pass", checked.problems
    assert {layer.name for layer in checked.layers if layer.tensorrt == "eligible"} == set(linears)
    ids = np.random.default_rng(0).integers(0, 50, (3, 8))
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3, [1] * 8])
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), torch.from_numpy(mask))
    hidden, pooled = run(model, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(hidden, expected.last_hidden_state.numpy(), atol=2e-2)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=2e-2)


class Baked(nn.Module):
    def forward(self, x):
        return x.reshape(2, 4)


def test_a_batch_that_the_code_fixes_is_told(tmp_path):
    """By the exporter, or by the first batch of another size that the graph refuses."""
    with pytest.raises(InputError, match=r"fixes the batch|refuses input \[|Reshape"):
        _export_and_check(Baked().eval(), (InputSpec(name="input", shape=(4,)),), tmp_path / "m.onnx")


def _export_and_check(module, inputs, path):
    write_onnx(onnx_from_module(module, inputs), path)
    batch = BatchRange(min=1, opt=4, max=8)
    reference = OnnxReference(path, converted=True)
    check_numerics(reference, path, noise(inputs, 8), batch, tolerance=1e-4, precision="fp32")
