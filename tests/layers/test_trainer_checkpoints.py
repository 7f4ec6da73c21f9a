"""Trainers' checkpoints and sparse layouts in files of torch.save."""

import warnings

import pytest
import torch

from nm2trt.errors import InputError
from nm2trt.layers import open_source
from nm2trt.pattern import NMPattern, mask
from nm2trt.prune import Request, prune_path
from nm2trt.verify import verify_path

TWO_FOUR = NMPattern(2, 4)


def network():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(16, 16), "b.weight": torch.randn(16, 16)}


def adam():
    moments = {"step": torch.tensor(5.0), "exp_avg": torch.randn(16, 16), "exp_avg_sq": torch.rand(16, 16)}
    return {"state": {0: moments}, "param_groups": [{"lr": 1e-3}]}


@pytest.mark.parametrize(
    "content",
    [
        {"model_state": network(), "optimizer_state": adam(), "step": 5},
        {"generator": network(), "optim_g": adam()},
        {"net": network(), "training": {"opt_d": adam()}},
        {"state_dict": network(), "optimizer_states": [adam()], "lr_schedulers": [{"gamma": torch.ones(2, 2)}]},
        {"model": network(), "anything": adam(), "rng_state": torch.zeros(8, 8, dtype=torch.uint8)},
        {"model": network(), "optimizer": {"momentum": {"a.weight": torch.randn(16, 16)}}},
        {"model": network(), "grad_scaler": {"x": torch.ones(4, 4)}},
        {"params": network(), "m": network(), "v": network(), "step": 3},
        {"params": network(), "mu": network(), "nu": network()},
    ],
    ids=lambda content: "-".join(content),
)
def test_the_optimizer_is_no_network(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    document = verify_path(tmp_path / "a.pt")
    assert {layer.name.split(".")[-2] for layer in document.layers if layer.verdict == "dense"} == {"a", "b"}
    assert any("the trainer's and not the network's, left out" in note for note in document.notes)
    pruned = prune_path(tmp_path / "a.pt", tmp_path / "b.pt", Request(pattern=TWO_FOUR))
    assert pruned.totals.tensors == 2
    assert any("the trainer's" in note for note in pruned.notes)
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert set(changed(before, after)) == {"a.weight", "b.weight"}


def changed(before, after):
    """Last keys of tensors that differ."""
    items = before.items() if isinstance(before, dict) else enumerate(before) if isinstance(before, list) else ()
    for key, value in items:
        if isinstance(value, torch.Tensor):
            if not torch.equal(value, after[key]):
                yield key
        else:
            yield from changed(value, after[key])


def test_logs_beside_the_network_do_not_change_its_names(tmp_path):
    torch.save(
        {"state_dict": network(), "losses": [torch.tensor(0.5)] * 3, "best": torch.tensor(1.0)}, tmp_path / "a.pt"
    )
    names = {layer.name for layer in verify_path(tmp_path / "a.pt").layers if layer.groups}
    assert names == {"a.weight", "b.weight"}
    torch.save([*network().values(), torch.zeros(3)], tmp_path / "list.pt")
    document = verify_path(tmp_path / "list.pt")
    assert (document.totals.prunable, document.totals.not_checked) == (0, 2)


def test_modules_called_m_and_v_are_no_moments(tmp_path):
    """As the bottlenecks of YOLO's blocks, and the values of an attention without other projections."""
    content = {"m": {"weight": torch.randn(16, 16)}, "v": {"weight": torch.randn(32, 16)}, "cv1": network()}
    torch.save(content, tmp_path / "a.pt")
    assert {layer.name for layer in verify_path(tmp_path / "a.pt").layers} == {
        *("m.weight", "v.weight", "cv1.a.weight", "cv1.b.weight")
    }


def test_copies_of_the_network_are_networks(tmp_path):
    """A moving average is deployed as often as the weights themselves."""
    torch.save({"model": network(), "ema": network()}, tmp_path / "a.pt")
    assert prune_path(tmp_path / "a.pt", tmp_path / "b.pt", Request(pattern=TWO_FOUR)).totals.tensors == 4


LAYOUTS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "bsr": lambda tensor: tensor.to_sparse_bsr((4, 4)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_layouts_are_counted_densely_and_left_alone(layout, tmp_path, capfd):
    weight = torch.randn(32, 64)
    weight = weight * torch.from_numpy(mask(weight.numpy(), TWO_FOUR, 1))
    torch.save({"l.weight": LAYOUTS[layout](weight), "d.weight": torch.randn(16, 16)}, tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = verify_path(tmp_path / "a.pt")
    assert {layer.name: layer.verdict for layer in document.layers} == {"l.weight": "conforms", "d.weight": "dense"}
    pruned = prune_path(tmp_path / "a.pt", tmp_path / "b.pt", Request(pattern=TWO_FOUR))
    reasons = {layer.name: layer.reason for layer in pruned.layers if layer.pattern is None}
    assert reasons == {"l.weight": "stored as a sparse tensor: save weight.to_dense()"}
    assert torch.equal(torch.load(tmp_path / "b.pt", weights_only=True)["l.weight"].to_dense(), weight)
    assert capfd.readouterr().err == ""


def test_a_sparse_tensor_cannot_claim_more_memory_than_is_sensible(tmp_path):
    huge = torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.tensor([1.0]), (1 << 18, 1 << 18))
    torch.save({"l.weight": huge}, tmp_path / "a.pt")
    (layer,) = open_source(tmp_path / "a.pt").layers()
    with pytest.raises(InputError, match="too many to write out"):
        layer.weight()


def test_tensors_without_a_shape_or_values(tmp_path):
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)])
    torch.save({"n.weight": nested, "a.weight": torch.randn(16, 16)}, tmp_path / "a.pt")
    assert {layer.name for layer in verify_path(tmp_path / "a.pt").layers if layer.groups} == {"a.weight"}
    assert prune_path(tmp_path / "a.pt", tmp_path / "b.pt", Request(pattern=TWO_FOUR)).totals.tensors == 1
    torch.save({"m.weight": torch.empty(8, 8, device="meta")}, tmp_path / "meta.pt")
    with pytest.raises(InputError, match="has no values"):
        verify_path(tmp_path / "meta.pt")


def test_errors_of_torch_are_told_in_our_words(tmp_path):
    torch.save({"a.weight": torch.zeros(64, 64)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-300])
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, words in (("cut.pt", "cut off or damaged"), ("text.pt", "neither a zip archive nor")):
        with pytest.raises(InputError, match=words) as caught:
            open_source(tmp_path / name)
        line = str(caught.value)
        assert "miniz" not in line
        assert "enforce fail" not in line
