"""Dense against 2:4 in PyTorch, with a made-up GPU: its times, kernels and packing are known."""

import math

import pytest
import torch
from torch import nn

from nm2trt.artifacts import NetworkRecord
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report_layers import LayerTimeRecord
from nm2trt.errors import InputError, MachineError
from nm2trt.export.inputs import InputSpec
from nm2trt.pattern import NMPattern
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.torch_sparse import TorchNetwork, experiment, profile_torch_sparse, runner
from nm2trt.profile.torch_sparse.reasons import why_not_faster
from nm2trt.reasons import Reason
from nm2trt.torch_sparse import conversion
from nm2trt.torch_sparse.backends import backend_states
from nm2trt.torch_sparse.conversion import ProductLayer
from nm2trt.torch_sparse.eligibility import why_not_eligible
from nm2trt.torch_sparse.kernel_names import KernelRun
from nm2trt.training.masks import nm_mask

SPARSE_KERNEL, DENSE_KERNEL = "sm90_xmma_sparse_gemm_f16f16", "sm90_xmma_gemm_f16f16"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.point = nn.Conv2d(32, 64, 1, stride=2)
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
        self.up = nn.Linear(64, 128)
        self.odd = nn.Linear(128, 10)

    def forward(self, x_BCHW):
        x_BLK = torch.relu(self.point(torch.relu(self.stem(x_BCHW)))).flatten(2).transpose(1, 2)
        x_BLK = x_BLK + self.attention(x_BLK, x_BLK, x_BLK, need_weights=False)[0]
        return self.odd(torch.relu(self.up(x_BLK)).mean(dim=1))


def network(*, pruned=True):
    torch.manual_seed(0)
    net = Net().eval()
    if pruned:
        with torch.no_grad():
            for weight in net.parameters():
                if weight.ndim > 1 and weight.shape[1] % 4 == 0:
                    weight.mul_(nm_mask(weight, NMPattern(2, 4), 1))
    record = NetworkRecord(kind="run", name="run", sha256="0" * 64, zero_share=None)
    return TorchNetwork(module=net, inputs=[InputSpec(name="x", shape=(3, 8, 8))], record=record)


class FakeRunner:
    """Time of a call: what the test says, by mode and by whether weights are packed."""

    noise = 0.001

    def __init__(self, module, inputs, *, mode, dtype, seed, record, fused_attention):
        self.module, self.mode, self.record = module, mode, record
        self.packed = any(getattr(weight, "is_packed", False) for weight in module.parameters())
        self.calls = 0
        self.speedup = {"eager": 1.0, "cuda-graph": 1.5}

    def prepare(self, batch):
        self.batch = batch
        if self.mode == "compiled":
            raise InputError("cannot be compiled", where="torch, compiled")

    def run_once(self):
        self.calls += 1
        wobble = 1 + self.noise * math.sin(self.calls * 12.9898)
        return 0.2 * self.batch * wobble / (self.speedup[self.mode] if self.packed else 1.0)

    def enqueue_ms(self):
        return 0.01

    def close(self):
        pass


@pytest.fixture
def made_up_gpu(monkeypatch):
    states = backend_states((9, 0), cusparselt_version=801, cuda_build=True)
    monkeypatch.setattr(experiment, "DEVICE", "cpu")
    monkeypatch.setattr(experiment, "detect_backends", lambda: states)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Made-up GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(experiment, "TorchSparseRunner", FakeRunner)
    monkeypatch.setattr(conversion, "why_not_eligible", _rules_as_on_a_gpu)
    monkeypatch.setattr(experiment, "packer", lambda backend: _packed)
    monkeypatch.setattr(experiment, "kernels_of", lambda call: _kernels(call.__self__.packed, 4))
    monkeypatch.setattr(runner, "kernels_by_range", _kernels_by_range)


def _rules_as_on_a_gpu(weight, backend):
    with torch._subclasses.FakeTensorMode():
        return why_not_eligible(torch.empty(weight.shape, dtype=weight.dtype, device="cuda"), backend)


class Packed(torch.Tensor):
    is_packed = True


def _packed(weight):
    return weight.clone().as_subclass(Packed)


def _kernels(packed, count):
    return tuple(KernelRun(SPARSE_KERNEL if packed else DENSE_KERNEL, 5.0) for _ in range(count))


def _kernels_by_range(call, names):
    seen = {}
    current = []

    class Scope:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            current.append(self.name)

        def __exit__(self, *_):
            current.pop()

    before = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        packed = isinstance(weight, Packed)
        seen.setdefault(current[-1], []).extend(
            [KernelRun(SPARSE_KERNEL if packed else DENSE_KERNEL, 4.0 if packed else 8.0)]
        )
        return before(x, torch.Tensor(weight) if packed else weight, bias)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch.profiler, "record_function", Scope)
    patch.setattr(torch.nn.functional, "linear", linear)
    try:
        call()
    finally:
        patch.undo()
    return seen


def config(**changes):
    values = {"backend": "torch-sparse", "batches": (2, 8), "modes": ("eager", "cuda-graph"), "duration_s": 0.05}
    return ProfileConfig(**(values | changes))


def test_known_gains_are_found_and_the_four_facts_stay_apart(made_up_gpu):
    report = profile_torch_sparse(network(), config())
    assert [(one.batch, one.mode) for one in report.batches] == [
        (2, "eager"),
        (8, "eager"),
        (2, "cuda-graph"),
        (8, "cuda-graph"),
    ]
    for one in report.batches:
        assert [variant.name for variant in one.variants] == ["dense", "control", "sparse", "sparse-repeat"]
        if one.mode == "cuda-graph":
            assert one.finding == "sparse-faster"
            assert one.ratio.low <= 1.5 <= one.ratio.high * 1.01
            assert "4 of 6 products run sparse kernels" in one.sentence
        else:
            assert one.finding == "no-difference"
    facts = report.facts
    assert facts.legal.state.value == "proved"
    assert facts.eligible.state.value == "proved"
    assert "4 of 6" in facts.eligible.evidence
    assert facts.chosen.state.value == "proved"
    assert not any("outside the products" in note for note in report.notes)
    assert "only at" in facts.faster.evidence
    assert "TensorRT's kernels are others" in report.runner.note
    assert type(report).model_validate_json(report.to_json()) == report


def test_each_product_says_why_it_is_dense(made_up_gpu):
    report = profile_torch_sparse(network(), config())
    rows = {row.name: row for row in report.layers.layers}
    assert {name for name, row in rows.items() if row.chosen} == {
        "point.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "up.weight",
    }
    assert rows["point.weight"].sparse_kernel == SPARSE_KERNEL
    assert rows["point.weight"].dense_kernel == DENSE_KERNEL
    assert rows["up.weight"].flops == 2 * 8 * 16 * 64 * 128
    assert rows["odd.weight"].eligible is False
    assert "multiples of 16 rows" in rows["odd.weight"].reasons[0]
    assert rows["up.weight"].ratio.value == pytest.approx(2.0)
    assert report.layers.chosen == 4


def test_a_mode_that_cannot_run_is_told_and_the_others_go_on(made_up_gpu):
    report = profile_torch_sparse(network(), config(modes=("compiled", "cuda-graph"), layers=False))
    assert {one.mode for one in report.batches} == {"cuda-graph"}
    assert any("cannot be compiled" in note for note in report.notes)
    with pytest.raises(InputError, match="cannot be compiled"):
        profile_torch_sparse(network(), config(modes=("compiled",)))


def test_a_call_without_a_sparse_kernel_is_never_a_gain_of_sparsity(made_up_gpu, monkeypatch):
    monkeypatch.setattr(experiment, "kernels_of", lambda call: _kernels(False, 4))
    report = profile_torch_sparse(network(), config(modes=("cuda-graph",), layers=False))
    assert report.facts.chosen.state.value == "disproved"
    assert report.facts.faster.state.value == "unknown"
    assert "not from sparsity" in report.batches[0].sentence


def test_an_unpruned_network_is_refused_with_the_reason(made_up_gpu):
    with pytest.raises(
        InputError, match=r"none of 6 products .* groups of four have more than two non-zeros"
    ) as caught:
        profile_torch_sparse(network(pruned=False), config())
    assert "nm2trt prune" in str(caught.value)


def test_wrong_outputs_end_it_before_anything_is_timed(made_up_gpu, monkeypatch):
    monkeypatch.setattr(experiment, "packer", lambda backend: lambda weight: _packed(weight * 2))
    with pytest.raises(experiment.WrongOutputsError, match="differ from the dense form") as caught:
        profile_torch_sparse(network(), config())
    assert caught.value.exit_code == 1


def test_another_architecture_is_no_dense_counterpart(made_up_gpu):
    other = network()
    other.module.up = nn.Linear(64, 64)
    with pytest.raises(InputError, match="the two networks differ"):
        profile_torch_sparse(network(), config(), dense=other)


def test_without_a_gpu_the_line_says_what_each_backend_lacks():
    states = backend_states(None, cusparselt_version=801, cuda_build=True)
    with pytest.raises(MachineError, match=r"cuSPARSELt 0.8.1: no GPU; CUTLASS: no GPU"):
        experiment.choose_backend(states)


def test_time_that_lies_between_the_products_is_told(made_up_gpu, monkeypatch):
    slow = {"eager": 1.0, "cuda-graph": 0.4}
    start = FakeRunner.__init__
    monkeypatch.setattr(
        FakeRunner,
        "__init__",
        lambda self, *more, **options: (start(self, *more, **options), self.speedup.update(slow))[0],
    )
    report = profile_torch_sparse(network(), config(modes=("cuda-graph",)))
    assert report.batches[-1].finding == "sparse-slower"
    (note,) = [note for note in report.notes if "outside the products" in note]
    # Five products of 8 us each, four of them 4 us by sparse kernels, in calls of 1.6 and 4 ms.
    assert "3.98 of 4 ms with 2:4 kernels" in note
    assert "1.56 of 1.6 ms" in note


def layer_row(**changes):
    values = {"name": "w", "type": "Conv2d", "dense_ms": 0.05, "sparse_ms": 0.3, "share": 0.1, "weighted": True}
    return LayerTimeRecord(**(values | changes))


def test_a_dense_product_that_copies_its_input_says_so():
    layer = ProductLayer(
        name="w",
        module="m",
        kind="Conv2d",
        shape=(8, 8, 3, 3),
        m=9,
        n=8,
        k=72,
        reason=Reason("kernel-size", "3x3"),
    )
    slowed = layer_row(ratio=RatioRecord(value=0.17, low=0.16, high=0.18))
    reasons = why_not_faster(slowed, layer, multiprocessors=132, sparse_share=None)
    assert ["3x3" in reasons[0][0], "column by column" in reasons[1][0]] == [True, True]
    same = layer_row(ratio=RatioRecord(value=1.0, low=0.98, high=1.02))
    assert len(why_not_faster(same, layer, multiprocessors=132, sparse_share=None)) == 1


@pytest.mark.parametrize(
    ("m", "ratio", "chosen", "share", "words"),
    [
        (8192, 1.4, True, 1.0, None),
        (64, 0.4, True, 1.0, "64 rows"),
        (8192, 0.9, True, 1.0, "default algorithm"),
        (8192, 0.9, True, 0.25, "only 25 %"),
        (8192, 0.9, False, 0.0, "no kernel with a sparse name"),
    ],
)
def test_an_eligible_product_says_why_it_gained_nothing(m, ratio, chosen, share, words):
    layer = ProductLayer(name="w", module="m", kind="Linear", shape=(4096, 4096), m=m, n=4096, k=4096)
    row = layer_row(ratio=RatioRecord(value=ratio, low=ratio * 0.99, high=ratio * 1.01), chosen=chosen)
    found = why_not_faster(row, layer, multiprocessors=132, sparse_share=share)
    assert found == [] if words is None else any(words in reason for reason, _ in found)


def test_a_slow_mode_gets_the_rounds_that_an_interval_needs(made_up_gpu, monkeypatch):
    clock = [0.0]
    run_once = FakeRunner.run_once

    def run(self):
        taken_ms = run_once(self) * (50 if self.packed else 1)
        clock[0] += taken_ms / 1000
        return taken_ms

    monkeypatch.setattr(FakeRunner, "run_once", run)
    real = experiment.measure
    monkeypatch.setattr(experiment, "measure", lambda *more, **options: real(*more, **options, clock=lambda: clock[0]))
    report = profile_torch_sparse(network(), config(batches=(8,), modes=("eager",), layers=False))
    assert report.batches[0].rounds >= 25
    assert report.batches[0].finding == "sparse-slower"


def test_a_classifier_of_zeros_hides_no_wrong_product(made_up_gpu, monkeypatch):
    mute = network()
    with torch.no_grad():
        mute.module.odd.weight.zero_()
        mute.module.odd.bias.zero_()
    assert profile_torch_sparse(mute, config(layers=False)).batches
    monkeypatch.setattr(experiment, "packer", lambda backend: lambda weight: _packed(weight * 2))
    with pytest.raises(experiment.WrongOutputsError):
        profile_torch_sparse(mute, config(layers=False))
