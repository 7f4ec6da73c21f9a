"""What `nm2trt profile --backend torch-sparse` takes: ONNX products, checkpoints, run folders; and its options."""

import numpy as np
import onnx
import pytest
import torch
from helpers import assert_one_error_line, nm2trt_inline
from onnx import TensorProto, helper
from product_nets import onnx_net
from safetensors.torch import save_file

from nm2trt.errors import ConfigError, InputError
from nm2trt.profile.config import profile_config
from nm2trt.profile.torch_sparse.network import check_same_modules, draw_feeds, filled, tensors_of, zero_share
from nm2trt.profile.torch_sparse.onnx_products import load_products


def test_an_onnx_files_products_compute_what_its_nodes_do(tmp_path):
    weights = onnx_net(tmp_path / "net.onnx")
    network = load_products(tmp_path / "net.onnx", shapes={})
    by_name = {one.name: one.shape for one in network.inputs}
    assert by_name == {"point": (25, 4), "product": (1, 8), "gemm": (1, 12)}
    expected = {
        "point": weights["point"][:, :, 0, 0],
        "product": weights["product"].T,
        "gemm": weights["gemm"],
    }
    feeds = draw_feeds(network.inputs, 3, dtype=torch.float32, device="cpu", seed=0)
    outputs = feeds.run(network.module)
    for one, x_BRI, y_BRO in zip(network.inputs, feeds.positional, outputs, strict=True):
        assert x_BRI.shape == (3, *one.shape)
        torch.testing.assert_close(y_BRO, x_BRI @ torch.from_numpy(expected[one.name].astype(np.float32)).T)
    assert network.record.kind == "onnx-products"
    assert "gain of the whole network is smaller" in network.note


def test_an_onnx_file_without_products_is_told(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx"
    )
    with pytest.raises(InputError):
        load_products(tmp_path / "net.onnx", shapes={})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--mode", "eager"), 2, "--mode does not go with --backend auto"),
        (("--precision", "bf16", "--model", "resnet18"), 2, "--precision, --model do not go with --backend auto"),
        (("--backend", "torch-sparse", "--streams", "2"), 2, "--streams does not go with --backend torch-sparse"),
        (("--backend", "torch-sparse", "--provider", "cuda", "--rebuilds", "2"), 2, "--provider, --rebuilds do not go"),
        (("--backend", "torch-sparse", "--mode", "fast"), 2, "'fast': choose from eager, compiled, cuda-graph"),
        (("--backend", "torch-sparse", "--mode", ","), 2, "choose from eager"),
        (("--backend", "torch-sparse", "--model", "resnet18"), 2, "--model: for checkpoints only"),
        (("--backend", "torch-sparse", "--input-shape", "3,8,8"), 2, "--input-shape: for checkpoints only"),
    ],
)
def test_options_that_do_not_fit_are_told(tmp_path, arguments, code, words):
    onnx_net(tmp_path / "net.onnx")
    result = nm2trt_inline("profile", tmp_path / "net.onnx", *arguments, "-o", tmp_path / "report")
    assert_one_error_line(result, code, words)
    assert not (tmp_path / "report").exists()


def test_a_checkpoint_needs_its_network(tmp_path):
    save_file({"weight": torch.zeros(4, 4)}, tmp_path / "w.safetensors")
    result = nm2trt_inline(
        "profile", tmp_path / "w.safetensors", "--backend", "torch-sparse", "-o", tmp_path / "report"
    )
    assert_one_error_line(result, 2, "a checkpoint holds weights and no network", "--model")


def test_without_a_gpu_every_source_ends_with_what_is_missing(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    onnx_net(tmp_path / "net.onnx")
    result = nm2trt_inline("profile", tmp_path / "net.onnx", "--backend", "torch-sparse", "-o", tmp_path / "report")
    assert_one_error_line(result, 4, "--backend torch-sparse", "no GPU", "compute capability 8.0")
    assert not (tmp_path / "report").exists()


def test_modes_are_read_and_kept_in_order():
    assert profile_config(modes="cuda-graph, eager,cuda-graph").modes == ("cuda-graph", "eager")
    with pytest.raises(ConfigError, match="--mode"):
        profile_config(modes="slow")


class Tokens:
    name, shape, dtype, keyword, below = "input_ids", (7,), "int64", True, 11


class Mask:
    name, shape, dtype, keyword, below = "attention_mask", (7,), "int64", True, None


def test_feeds_are_drawn_by_kind():
    feeds = draw_feeds([Tokens, Mask], 4, dtype=torch.float16, device="cpu", seed=0)
    assert feeds.positional == ()
    ids = feeds.keywords["input_ids"]
    assert ids.shape == (4, 7)
    assert 0 <= int(ids.min()) < int(ids.max()) < 11
    assert torch.equal(feeds.keywords["attention_mask"], torch.ones(4, 7, dtype=torch.int64))


def test_filling_touches_the_named_zeros_only():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight[:, ::2] = 0
        net[1].weight[:, ::2] = 0
    dense = filled(net, ["0.weight"], seed=0)
    assert zero_share(dense) == pytest.approx(8 / 48)
    kept = net[0].weight != 0
    assert torch.equal(dense[0].weight[kept], net[0].weight[kept])
    assert set(dense[0].weight[~kept].tolist()) <= set(net[0].weight[kept].tolist())
    assert torch.equal(dense[1].weight, net[1].weight)
    assert zero_share(net) == 0.5
    check_same_modules(dense, net, where="both")


def test_every_tensor_of_an_output_is_compared():
    one, other = torch.zeros(2), torch.ones(3)
    assert [id(value) for value in tensors_of({"a": one, "b": (other, None, torch.arange(3))})] == [id(one), id(other)]
