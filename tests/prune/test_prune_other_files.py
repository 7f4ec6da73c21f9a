"""Files of other people: what is no weight keeps its bytes, and what stops pruning is one line about their file."""

import json

import numpy as np
import onnx
import pytest
import torch
from helpers import assert_one_error_line, nm2trt
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern
from nm2trt.prune import PermuteOptions, Request, prune_path
from nm2trt.verify import verify_path

TWO_FOUR = Request(pattern=NMPattern(2, 4))
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def changed(before, after):
    first, second = load_file(before), load_file(after)
    return {name for name in first if not np.array_equal(first[name], second[name])}


QUANTIZED = {
    "int8 in groups": ({"q.weight": "int8", "q.weight_scale": (64, 8), "q.weight_zero_point": "zeros"}, {"q.weight"}),
    "Model Optimizer": ({"a.weight": (64, 64), "a.weight_quantizer._amax": (64, 4)}, {"a.weight"}),
    "key and value scales": ({"a.weight": (64, 64), "attn.k_scale": (8, 8), "attn.v_scale": (8, 8)}, {"a.weight"}),
    "GPTQ": ({"q.qweight": "int32", "q.scales": (4, 64), "q.qzeros": "int32", "a.weight": (64, 64)}, {"a.weight"}),
    "AWQ": ({"q.qweight": "int32", "q.scales": (64, 4), "o.weight": (64, 64)}, {"o.weight"}),
    "bitsandbytes": ({"q.weight": "uint8", "q.weight.absmax": (64, 4), "a.weight": (64, 64)}, {"a.weight"}),
    "tables": ({"a.weight": (64, 64), "rotary.cos_cached": (64, 32), "pos_embed": (64, 64)}, {"a.weight"}),
    "moments": ({"a.weight": (64, 64), "a.exp_avg": (64, 64), "optimizer.a.weight": (64, 64)}, {"a.weight"}),
    "unknown": ({"a.weight": (64, 64), "mystery": (64, 64), "experts.w": (4, 64, 256)}, {"a.weight"}),
    "adapter beside": ({"a.weight": (64, 64), "q.lora_A.weight": (8, 64), "q.lora_B.weight": (64, 8)}, {"a.weight"}),
}


def made(kind):
    if kind == "zeros":
        return np.zeros((64, 8), np.int8)
    return RNG.integers(0, 100, (64, 64)).astype(kind) if isinstance(kind, str) else normal(*kind)


@pytest.mark.parametrize("name", QUANTIZED)
def test_only_weights_change(name, tmp_path):
    kinds, expected = QUANTIZED[name]
    tensors = {key: made(kind) for key, kind in kinds.items()}
    if "q.weight" in tensors and tensors["q.weight"].dtype == np.int8:
        tensors["q.weight"] -= 50
    save_file(tensors, tmp_path / "a.safetensors")
    document = prune_path(tmp_path / "a.safetensors", tmp_path / "b.safetensors", TWO_FOUR)
    assert document.verdict == "pass"
    assert changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == expected
    checked = {layer.name for layer in verify_path(tmp_path / "a.safetensors").layers if layer.groups}
    assert checked == expected


def test_block_scales_of_float8(tmp_path):
    weight = torch.randn(64, 64)
    tensors = {"a.weight": weight.to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.rand(8, 8), "b.weight": weight}
    save_torch(tensors, tmp_path / "a.safetensors")
    document = prune_path(tmp_path / "a.safetensors", tmp_path / "b.safetensors", TWO_FOUR)
    assert {layer.name for layer in document.layers if layer.pattern} == {"b.weight"}


def test_a_zero_point_beside_integers_is_refused(tmp_path):
    tensors = {"q.weight": made("int8"), "q.weight_zero_point": np.full((64, 8), 3, np.int8)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert [layer.verdict for layer in verify_path(tmp_path / "a.safetensors").layers if layer.groups] == ["zero-point"]
    with pytest.raises(InputError, match="zero point"):
        prune_path(tmp_path / "a.safetensors", tmp_path / "b.safetensors", TWO_FOUR)


def test_what_was_left_is_listed_and_counted_and_can_be_named(tmp_path):
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a.weight": normal(8, 8), "my[odd]*w": normal(8, 8), "other": normal(8, 8)}, source)
    result = nm2trt("prune", source, "-o", out)
    assert result.returncode == 0
    assert (
        "left as it is: other [8, 8]: not known to be a layer's weight: name it with --layer 'other=N:M'"
        in result.stdout
    )
    assert "2 tensors of two and more dimensions left as they are, since they may be no weights" in result.stdout
    named = nm2trt("prune", source, "-o", tmp_path / "c.safetensors", "--layer", "my*=1:4")
    assert named.returncode == 0
    assert changed(source, tmp_path / "c.safetensors") == {"a.weight", "my[odd]*w"}
    nothing = tmp_path / "nothing.safetensors"
    save_file({"other": normal(8, 8)}, nothing)
    assert_one_error_line(nm2trt("prune", nothing, "-o", tmp_path / "d.safetensors"), 3, "name it with --layer 'other")


def test_conv1d_is_pruned_along_its_inputs_also_into_one_file(tmp_path):
    source = tmp_path / "gpt2"
    source.mkdir()
    tensors = {"h.0.attn.c_attn.weight": normal(64, 192), "h.0.attn.c_proj.weight": normal(64, 64)}
    save_file({**tensors, "wte.weight": normal(100, 64)}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for target in (tmp_path / "out", tmp_path / "out.safetensors"):
        document = prune_path(source, target, TWO_FOUR)
        assert {layer.name: layer.axis for layer in document.layers if layer.pattern} == dict.fromkeys(tensors, 0)
        assert document.verdict == "pass"
        file = target / "model.safetensors" if target.is_dir() else target
        for name in tensors:
            groups = load_file(file)[name].reshape(-1, 4, tensors[name].shape[1])
            assert (np.count_nonzero(groups, axis=1) == 2).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "out", "out.safetensors"]


def test_errors_name_the_users_file_and_no_temporary_one(tmp_path):
    weight = normal(8, 8)
    weight[0, 0] = np.nan
    save_file({"a.weight": weight}, tmp_path / "a.safetensors")
    result = nm2trt("prune", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors")
    assert_one_error_line(result, 3, str(tmp_path / "a.safetensors"))
    assert "partial" not in result.stderr


# ONNX


def model(nodes, initializers, *, listed=False, ir_version=8, inputs=(), outputs=("y",)):
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 12, 12])]
    ports += [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in inputs]
    if listed:
        ports += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers]
    made_outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", ports, made_outputs, initializers)
    opset = 11 if ir_version < 4 else 17
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def chain(tail=("y",)):
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Mul", ["c", "half"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], list(tail), pads=[1] * 4),
    ]
    weights = {"w1": normal(16, 8, 3, 3), "w2": normal(16, 16, 3, 3), "half": np.float32(0.5)}
    return nodes, [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]


@pytest.mark.parametrize(("listed", "ir_version"), [(True, 3), (True, 8), (False, 8)])
def test_channels_move_where_weights_are_listed_as_inputs(listed, ir_version, tmp_path):
    onnx.save(model(*chain(), listed=listed, ir_version=ir_version), tmp_path / "a.onnx")
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR, permute=PermuteOptions(0.2))
    assert document.verdict == "pass"
    assert document.permutation.outputs == "agree"
    assert [group.permuted for group in document.permutation.groups] == [False, True]


def test_scalars_as_inputs_and_outputs_are_compared(tmp_path):
    nodes, initializers = chain(("c2",))
    nodes += [
        helper.make_node("Mul", ["c2", "t"], ["y"]),
        helper.make_node("ReduceMean", ["y"], ["loss"], keepdims=0),
    ]
    onnx.save(model(nodes, initializers, inputs=("t",), outputs=("y", "loss")), tmp_path / "a.onnx")
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR, permute=PermuteOptions(0.2))
    assert (document.verdict, document.permutation.outputs) == ("pass", "agree")


def external(folder, location, proto=None):
    """A model in `folder` whose first weight lies in w.bin, named as `location`."""
    folder.mkdir(exist_ok=True)
    proto = proto or model(*chain())
    tensor = proto.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(location))
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["own", "C:\\models\\w.bin", "\\\\server\\w.bin", "/nowhere/w.bin"])
@pytest.mark.parametrize("force", [True, False])
def test_absolute_locations_are_refused_by_all_alike(where, force, tmp_path):
    folder = tmp_path / "m"
    path = external(folder, folder / "w.bin" if where == "own" else where)
    data = (folder / "w.bin").read_bytes()
    flags = ["--force"] if force else []
    for arguments in (
        ("verify", path),
        ("prune", path, "-o", folder / "out.onnx", *flags),
        ("prune", path, "-o", tmp_path / "out.onnx", *flags),
    ):
        result = nm2trt(*arguments)
        assert_one_error_line(result, 3, "absolute location")
        assert "set the location to 'w.bin'" in result.stderr
    assert (folder / "w.bin").read_bytes() == data
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "w.bin"]


@pytest.mark.parametrize("target", ["m/out.onnx", "other/out.onnx"])
def test_two_spellings_of_one_data_file(target, tmp_path):
    """./w.bin and w.bin are one file, which is copied once."""
    path = external(tmp_path / "m", "./w.bin")
    proto = onnx.load(path, load_external_data=False)
    other = proto.graph.initializer[1]
    start = (tmp_path / "m" / "w.bin").stat().st_size
    with (tmp_path / "m" / "w.bin").open("ab") as file:
        file.write(other.raw_data)
    other.ClearField("raw_data")
    other.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", start)):
        other.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    (tmp_path / "other").mkdir()
    document = prune_path(path, tmp_path / target, TWO_FOUR)
    assert (document.verdict, document.totals.tensors) == ("pass", 2)
    assert verify_path(tmp_path / target, strict=True).verdict == "pass"
    onnx.load(tmp_path / target)


def test_operators_that_are_not_read_are_mentioned(tmp_path):
    nodes, initializers = chain(("c2",))
    nodes.append(helper.make_node("Einsum", ["c2", "e"], ["y"], equation="bchw,cd->bdhw"))
    onnx.save(model(nodes, [*initializers, numpy_helper.from_array(normal(16, 8), "e")]), tmp_path / "a.onnx")
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR)
    assert "left as they are, since their operators are not read: 1 of Einsum" in document.notes
