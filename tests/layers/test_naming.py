"""Which tensors of a checkpoint are taken for weights, for tables of names from real checkpoints."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nm2trt.layers import open_layers
from nm2trt.layers.config_json import ModelConfig, read_config
from nm2trt.layers.naming import Neighbors, guess, transposed_linears
from nm2trt.pattern import NMPattern, mask
from nm2trt.verify import verify_path


def role(name, shape, dtype="float32", config=None, **others):
    """ "weight" with its axis, or the reason's code; "?" marks what may be a weight."""
    shapes = {name: shape, **others}
    around = Neighbors(shapes=shapes, config=config or ModelConfig(), transposed_linears=transposed_linears(shapes))
    found = guess(name, shape, dtype, around)
    if found.reason is None:
        return f"weight {found.reduction_axis}"
    return found.reason.code + "?" * found.unknown


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.fc.weight", (8, 16)),
        ("rnn.weight_ih_l0_reverse", (16, 8)),
        ("rnn.weight_hh_l1", (16, 8)),
        ("attn.in_proj_weight", (24, 8)),
        ("conv.weight_v", (8, 4, 3)),
        ("conv.parametrizations.weight.original1", (8, 4, 3)),
        ("conv.weight_orig", (8, 4, 3, 3)),
        ("q_proj.base_layer.weight", (64, 64)),
        ("mlp.experts.0.w1.weight", (64, 128)),
        ("embeddings.patch_embeddings.projection.weight", (8, 3, 4, 4)),
        ("lm_head.weight", (100, 64)),
    ],
)
def test_weights_of_modules(name, shape):
    assert role(name, shape) == "weight 1"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((f"fc.{last}", "companion") for last in ("weight_scale", "weight_scale_inv", "weight_scale_2", "scales")),
        *((f"fc.{last}", "companion") for last in ("qzeros", "weight_zero_point", "weight.absmax", "weight.quant_map")),
        *((f"fc.{last}", "companion") for last in ("weight_packed", "w_scales", "weight_quantizer._amax", "k_scale")),
        ("fc.weight_quantizer._pre_quant_scale", "companion"),
        ("act.activation_post_process.min_val", "companion"),
        ("fc.exp_avg", "optimizer"),
        ("optimizer.state.fc.weight.exp_avg_sq", "optimizer"),
        ("optim_g.state.0.exp_avg", "optimizer"),
        ("optimizer.fc.weight", "optimizer"),
        ("fc.lora_A.default.weight", "adapter"),
        ("down.lora_down.weight", "adapter"),
        ("codebook.weight", "embedding"),
        ("quantize.embedding.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("query_embed.weight", "embedding"),
        ("pos_embed", "table"),
        ("relative_position_bias_table", "table"),
        ("freqs_cis", "table"),
        ("cos_cached", "table"),
        ("anchors", "table"),
        ("bn.running_mean", "table"),
        ("backbone.norm.weight", "table"),
        ("queue", "table"),
        ("gamma", "table"),
    ],
)
def test_known_to_be_no_weight(name, code):
    assert role(name, (32, 8)) == code


@pytest.mark.parametrize("name", ["w", "layer1", "text_projection", "fc.w", "proj", "fc1_weight", ""])
def test_nothing_is_known_of_other_names(name):
    assert role(name, (32, 8)) == "unknown-name?"


def test_stacks_of_matrices_have_no_known_axis():
    assert role("experts.gate_up_proj", (8, 64, 256)) == "stacked?"
    assert role("experts.w1.weight", (8, 64, 256)) == "stacked?"
    assert role("bank.weight", (8, 64, 32), **{"bank.bias": (8, 64)}) == "stacked?"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("q.qweight", "int32"),
        ("q.weight_packed", "int32"),
        ("q.weight", "uint8"),
        ("q.weight", "int32"),
        ("experts.gate_up_proj_blocks", "uint8"),
    ],
)
def test_packed_weights_are_named(name, dtype):
    assert role(name, (32, 8), dtype) == "packed?"
    assert role(name.replace("weight", "mask").replace("blocks", "mask"), (32, 8), dtype) == "dtype"


def test_a_file_of_packed_weights_is_never_all_checked(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    path = tmp_path / "m.safetensors"
    packed = {"q.weight_packed": np.ones((8, 2), np.int32), "q.scale_packed": np.ones((8, 2), np.float16)}
    save_file({"o.weight": weight * mask(weight, NMPattern(2, 4), 1), **packed}, path)
    (problem,) = verify_path(path, strict=True).problems
    assert problem.startswith("--strict: 1 tensor not checked, first q.weight_packed (packed values);")
    save_file(packed, path)
    assert "1 tensor not checked, first q.weight_packed (packed values)" in verify_path(path).problems


def test_a_bias_tells_the_axes_apart():
    assert role("fc.weight", (8, 16), **{"fc.bias": (8,)}) == "weight 1"
    assert role("fc.weight", (8, 16), **{"fc.bias": (16,)}) == "weight 0"
    assert role("fc.weight", (8, 16), **{"fc.bias": (5,)}) == "orientation?"
    assert role("up.weight", (16, 8, 2, 2), **{"up.bias": (8,)}) == "weight 0"
    # A square layer follows the others of its checkpoint.
    assert role("b.weight", (8, 8), **{"b.bias": (8,), "a.weight": (8, 24), "a.bias": (24,)}) == "weight 0"
    assert role("b.weight", (8, 8), **{"b.bias": (8,), "a.weight": (24, 8), "a.bias": (24,)}) == "weight 1"


def test_a_bias_makes_a_weight_of_other_words_and_of_embedding_names():
    assert role("conv0_weight", (8, 4, 3, 3), conv0_bias=(8,)) == "weight 1"
    assert role("l.W", (8, 4), **{"l.b": (8,)}) == "weight 1"
    assert role("time_embed.0.weight", (128, 32), **{"time_embed.0.bias": (128,)}) == "weight 1"
    assert role("ln.weight", (16, 8), **{"ln.bias": (16, 8)}) == "norm"


def test_flax_and_keras_kernels():
    assert role("params/Dense_0/kernel", (16, 8)) == "weight 0"
    assert role("params/Conv_0/kernel", (3, 3, 16, 8)) == "weight 2"
    assert role("params/Conv_0/kernel", (3, 3, 1, 8)) == "depthwise"


def test_config_json_knows_tables_by_their_rows():
    config = ModelConfig(vocabulary_sizes=frozenset({512}))
    assert role("tok.weight", (512, 64), config=config) == "embedding"
    assert role("lm_head.weight", (512, 64), config=config) == "weight 1"
    assert role("mlp.up.weight", (512, 64), config=config, **{"mlp.up.bias": (512,)}) == "weight 1"


GPT2 = {"a.c_attn.weight": (64, 192), "a.c_proj.weight": (64, 64)}


@pytest.mark.parametrize(
    ("config", "axis"),
    [
        ({"model_type": "gpt2"}, 0),
        ({"architectures": ["GPT2LMHeadModel"]}, 0),
        ({"decoder": {"model_type": "gpt2"}}, 0),
        ({"model_type": "imagegpt"}, 0),
        ({"model_type": "gpt_bigcode"}, 1),
        ({"model_type": "llama"}, 1),
    ],
)
def test_conv1d_by_config(config, axis, tmp_path):
    """Square layers of the same names: only the config tells."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {"a.c_proj.weight": (64, 64), "a.c_proj.bias": (64,)}
    around = Neighbors(shapes=shapes, config=read_config(tmp_path / "model.safetensors"))
    assert guess("a.c_proj.weight", (64, 64), "float32", around).reduction_axis == axis


def test_conv1d_by_shape_and_not_at_all():
    assert role("a.c_proj.weight", (64, 64), **{"a.c_attn.weight": (64, 192)}) == "weight 0"
    # nanoGPT's torch.nn.Linear has the same names.
    assert role("a.c_proj.weight", (64, 64), **{"a.c_attn.weight": (192, 64)}) == "weight 1"
    assert role("a.c_proj.weight", (64, 64)) == "conv1d?"


def test_a_folder_of_gpt2_is_counted_along_its_inputs(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in {**GPT2, "a.c_fc.weight": (64, 256)}.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        tensors[name] = weight * mask(weight, NMPattern(2, 4), 0)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        document = verify_path(path, strict=True)
        assert (document.verdict, {layer.axis for layer in document.layers}) == ("pass", {0})


@pytest.mark.parametrize("text", ["{", "[]", "[1, 2]", '{"model_type": 3, "vocab_size": "x"}', "[" * 100_000])
def test_broken_config_counts_as_none(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert not read_config(tmp_path / "model.safetensors").conv1d


NAMES = st.text(st.sampled_from("abw./_0") | st.characters(), max_size=30) | st.builds(
    "{}.{}".format, st.text(max_size=5), st.sampled_from(["weight", "bias", "kernel", "w", "weight_orig", "exp_avg"])
)


@given(
    st.dictionaries(NAMES, st.lists(st.integers(0, 64), max_size=6).map(tuple), min_size=1, max_size=4),
    st.sampled_from(["float32", "int8", "uint8", "bfloat16", "int64"]),
)
def test_any_name_and_shape_gets_an_axis_or_a_reason(shapes, dtype):
    around = Neighbors(shapes=shapes, transposed_linears=transposed_linears(shapes))
    for name, shape in shapes.items():
        found = guess(name, shape, dtype, around)
        if found.reason is None:
            assert found.reduction_axis is not None
            assert 0 <= found.reduction_axis < len(shape)
        else:
            assert found.reason.words()


def test_not_checked_until_it_is_named(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    path = tmp_path / "m.safetensors"
    save_file({"odd": weight * mask(weight, NMPattern(2, 4), 1), "fc.weight": np.eye(8, 16, dtype=np.float32)}, path)
    (odd,) = [layer for layer in open_layers(path) if layer.name == "odd"]
    assert odd.not_checked
    document = verify_path(path)
    assert (document.verdict, document.totals.not_checked, document.totals.weights_not_checked) == ("pass", 1, 128)
    strict = verify_path(path, strict=True)
    assert strict.verdict == "fail"
    assert any("1 tensor not checked, first odd" in problem for problem in strict.problems)
    assert verify_path(path, strict=True, exclude=["odd"]).verdict == "pass"
    named = verify_path(path, strict=True, layer_patterns={"odd": NMPattern(2, 4)})
    assert named.verdict == "pass"
    assert {layer.verdict for layer in named.layers} == {"conforms"}
