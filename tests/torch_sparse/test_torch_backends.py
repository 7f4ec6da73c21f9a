from typing import get_args

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from nm2trt.reasons import Reason, TorchKernelCode
from nm2trt.torch_sparse.backends import BACKENDS, backend_states, describe_state, tensor_class, weight_multiples
from nm2trt.torch_sparse.conversion import (
    ProductLayer,
    find_products,
    no_fused_attention,
    pack_products,
    packer,
    rewrite,
)
from nm2trt.torch_sparse.eligibility import advise, count_violations, why_not_eligible
from nm2trt.torch_sparse.kernel_names import describe_kernels, is_sparse_kernel, kernels_of, short_name
from nm2trt.torch_sparse.products import (
    DTYPES,
    draw_operands,
    multiply_dense,
    relative_error,
    search_algorithm,
    sparse_product,
)


def fake(shape, dtype=torch.float16, device="cuda"):
    return torch.empty(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("capability", "version", "cuda", "expected"),
    [
        ((8, 0), 801, True, {"cusparselt": "", "cutlass": ""}),
        ((8, 9), 800, True, {"cusparselt": "", "cutlass": ""}),
        ((9, 0), 800, True, {"cusparselt": "", "cutlass": "only-sm8x"}),
        ((12, 0), None, True, {"cusparselt": "not-built", "cutlass": "only-sm8x"}),
        ((7, 5), 801, True, {"cusparselt": "too-old", "cutlass": "too-old"}),
        (None, 801, True, {"cusparselt": "no-gpu", "cutlass": "no-gpu"}),
        (None, None, False, {"cusparselt": "not-built", "cutlass": "not-built"}),
    ],
)
def test_which_backends_a_gpu_has(capability, version, cuda, expected):
    states = backend_states(capability, cusparselt_version=version, cuda_build=cuda)
    assert {state.name: state.absence for state in states} == expected
    for state in states:
        assert ":" in describe_state(state) or state.available


@pytest.mark.parametrize(
    ("capability", "version", "slow"),
    [((9, 0), 800, True), ((8, 9), 800, True), ((8, 0), 800, False), ((9, 0), 801, False), ((9, 0), 701, False)],
)
def test_the_slow_release_is_named_where_it_is_slow(capability, version, slow):
    states = {state.name: state for state in backend_states(capability, cusparselt_version=version, cuda_build=True)}
    assert states["cusparselt"].slow_release is slow
    assert states["cutlass"].slow_release is False
    assert f"{version // 1000}.{version // 100 % 10}.{version % 10}" in describe_state(states["cusparselt"])


def test_the_multiples_are_those_that_torch_documents():
    assert weight_multiples("cusparselt", torch.float16) == (16, 16)
    assert weight_multiples("cusparselt", torch.int8) == (32, 32)
    assert weight_multiples("cusparselt", torch.float32) is None
    assert weight_multiples("cutlass", torch.bfloat16) == (32, 64)
    assert weight_multiples("cutlass", torch.int8) == (16, 128)


@pytest.mark.parametrize(
    ("weight", "backend", "code", "words"),
    [
        (lambda: fake((32, 64)), "cutlass", None, ""),
        (lambda: fake((16, 16)), "cusparselt", None, ""),
        (lambda: fake((32, 64), torch.float32), "cusparselt", "kernel-dtype", "no 2:4 kernel for float32"),
        (lambda: fake((32, 64), torch.float64), "cutlass", "kernel-dtype", "float64"),
        (lambda: fake((24, 64)), "cusparselt", "cusparselt-multiples", "24x64: cusparselt needs multiples of 16 rows"),
        (lambda: fake((32, 96)), "cutlass", "cutlass-multiples", "64 columns"),
        (lambda: fake((32, 64), torch.int8), "cutlass", "cutlass-multiples", "128 columns"),
        (lambda: fake((32, 64), device="cpu"), "cusparselt", "not-on-gpu", "on the cpu"),
        (lambda: fake((64, 32)).t(), "cusparselt", "not-contiguous", "strides 1x32"),
        (lambda: fake((32, 128))[:, ::2], "cusparselt", "not-contiguous", "not contiguous"),
        (lambda: fake((2, 32, 64)), "cusparselt", "no-matrix", "2x32x64 is no matrix"),
    ],
)
def test_every_rule_is_told_in_a_line(weight, backend, code, words):
    with FakeTensorMode():
        reason = why_not_eligible(weight(), backend)
    if code is None:
        assert reason is None
        return
    assert reason is not None
    assert reason.code == code
    assert words in reason.words()
    assert "\n" not in reason.words()
    assert advise(reason)


def test_torchs_own_classes_refuse_what_the_rules_refuse():
    with FakeTensorMode():
        for backend in BACKENDS:
            for weight in (
                fake((24, 64)),
                fake((32, 64), torch.float64),
                fake((2, 32, 64)),
                fake((64, 64)).t()[:, ::2],
            ):
                assert why_not_eligible(weight, backend) is not None
                with pytest.raises(RuntimeError):
                    tensor_class(backend).from_dense(weight)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 3, 8, 197])
@pytest.mark.parametrize("bias", [True, False])
def test_both_backends_trace_without_a_gpu_padding_included(monkeypatch, backend, rows, bias):
    # Compressing is cuSPARSELt's own and has no fake form; the size is that of half the values and their places.
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight.new_empty(weight.numel() * 9 // 16))
    with FakeTensorMode(), torch.no_grad():
        weight = nn.Parameter(packer(backend)(fake((64, 128))), requires_grad=False)
        found = functional.linear(fake((2, rows, 128)), weight, fake((64,)) if bias else None)
        assert found.shape == (2, rows, 64)
        assert found.device.type == "cuda"
        assert found.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(32, 128), (64, 256), (96, 384)])
def test_cutlass_packs_and_unpacks_without_loss(dtype, shape):
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    _, w_NK = draw_operands(8, *shape, dtype, device="cpu", seed=1)
    packed, meta = sparse_semi_structured_from_dense_cutlass(w_NK)
    assert packed.shape == (shape[0], shape[1] // 2)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), w_NK)


def test_operands_are_two_of_four_and_never_overflow():
    x_MK, w_NK = draw_operands(16, 32, 512, torch.int8, device="cpu", seed=0)
    assert count_violations(w_NK) == 0
    assert int((w_NK != 0).sum()) > 0.4 * w_NK.numel()
    assert int(multiply_dense(x_MK.int().float(), w_NK.int().float()).abs().max()) < 2**24


def test_violations_are_counted_like_a_slow_loop():
    torch.manual_seed(0)
    weight = torch.randint(-1, 2, (8, 24)).half()
    slow = sum(
        sum(float(value) != 0 for value in row[at : at + 4]) > 2 for row in weight for at in range(0, len(row), 4)
    )
    assert count_violations(weight) == slow
    assert count_violations(torch.zeros(3, 6)) == 6


@pytest.mark.parametrize(
    ("name", "sparse"),
    [
        (
            "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn_t_tilesize128x256x64_cgasize4x1x1_execute_kernel_5x_cusparselt",
            True,
        ),
        ("void cutlass::Kernel2<cutlass::gemm::kernel::SparseGemmRowBroadcast<...>>(...)", True),
        ("sm80_xmma_spmma_gemm_f16", True),
        ("nvjet_sm90_hsh_192x192_64x4_2x1_v_bz_coopB_bias_TNN", False),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64", False),
        ("void cusparseLt::compress_kernel<__half>(...)", False),
        ("cusparseLt_sparse_compress_kernel", False),
    ],
)
def test_sparse_kernels_are_told_by_name(name, sparse):
    assert is_sparse_kernel(name) is sparse


def test_names_are_cut_to_what_can_be_read():
    long = "void at::native::elementwise_kernel<128, 4, lambda(int)>(int, at::native::" + "x" * 300 + ")"
    assert short_name(long) == "at::native::elementwise_kernel<128, 4, lambda"
    assert describe_kernels({"Memset (Device)": 2.0, long: 3.0}) == short_name(long)
    assert describe_kernels({"nvjet_sm90_a": 3.0, long: 9.0}) == "nvjet_sm90_a"
    assert describe_kernels({}) == ""


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.point = nn.Conv2d(32, 64, 1, stride=2, bias=False)
        self.grouped = nn.Conv2d(64, 64, 1, groups=4)
        self.padded = nn.Conv2d(64, 64, 1, padding=1)
        self.own = nn.MultiheadAttention(64, 4, batch_first=True)
        self.masked = nn.MultiheadAttention(64, 4, batch_first=True)
        self.across = nn.MultiheadAttention(64, 4)
        self.head = nn.Linear(64, 48)
        self.unused = nn.Linear(64, 64)

    def forward(self, x_BCHW):
        y_BCHW = self.padded(self.grouped(self.point(torch.relu(self.stem(x_BCHW)))))
        x_BLK = y_BCHW.flatten(2).transpose(1, 2)
        x_BLK = x_BLK + self.own(x_BLK, x_BLK, x_BLK, need_weights=False)[0]
        mask = torch.zeros(x_BLK.shape[1], x_BLK.shape[1])
        x_BLK = x_BLK + self.masked(x_BLK, x_BLK, x_BLK, attn_mask=mask, need_weights=False)[0]
        x_BLK = x_BLK + self.across(x_BLK, x_BLK.flip(0), x_BLK, need_weights=False)[0]
        return self.head(x_BLK)


def test_products_are_found_with_the_first_reason_against_each():
    net = Mixed().eval()
    x_BCHW = torch.randn(2, 3, 16, 16)
    found = {layer.name: layer for layer in find_products(net, lambda one: one(x_BCHW))}
    codes = {name: layer.reason.code if layer.reason else None for name, layer in found.items()}
    assert codes == {
        "stem.weight": "kernel-size",
        "point.weight": None,
        "grouped.weight": "grouped-convolution",
        "padded.weight": "padded-convolution",
        "own.in_proj_weight": None,
        "own.out_proj.weight": None,
        "masked.in_proj_weight": "attention-call",
        "masked.out_proj.weight": "attention-call",
        "across.in_proj_weight": "attention-call",
        "across.out_proj.weight": "attention-call",
        "head.weight": None,
        "unused.weight": "never-called",
    }
    assert found["point.weight"].m == 2 * 4 * 4
    assert found["point.weight"].flops == 2 * 32 * 64 * 32
    assert found["own.in_proj_weight"].m == 2 * 6 * 6
    for layer in found.values():
        if layer.reason is not None:
            assert layer.reason.words()
            assert advise(layer.reason)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_rewritten_network_computes_the_same(channels_last):
    torch.manual_seed(0)
    net = Mixed().eval()
    x_BCHW = torch.randn(2, 3, 16, 16)
    if channels_last:
        net, x_BCHW = net.to(memory_format=torch.channels_last), x_BCHW.to(memory_format=torch.channels_last)
    layers = find_products(net, lambda one: one(x_BCHW))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rewritten = rewrite(net, layers)
    packed = pack_products(rewritten, layers, lambda weight: weight.clone())
    with torch.no_grad(), no_fused_attention():
        expected = net(x_BCHW)
        for other in (rewritten, packed):
            torch.testing.assert_close(other(x_BCHW), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert type(rewritten.point).__name__ == "PointwiseProduct"
    assert type(rewritten.own).__name__ == "SelfAttention"
    assert type(rewritten.masked) is nn.MultiheadAttention


def test_a_network_that_is_one_product_is_rewritten_too():
    net = nn.Linear(32, 16).eval()
    x_BI = torch.randn(4, 32)
    layers = find_products(net, lambda one: one(x_BI))
    assert [layer.name for layer in layers] == ["weight"]
    torch.testing.assert_close(rewrite(net, layers)(x_BI), net(x_BI))


def test_every_reason_has_its_line_and_its_advice():
    words = {
        Reason("no-torch-kernel", "Conv3d"): "Conv3d: torch has no 2:4 kernel for it",
        Reason("dense", "1.0 %", "3 of 4"): (
            "dense: 1.0 % of its weights are zero; 3 of 4 groups of four have more than two non-zeros"
        ),
        Reason("broken-pattern", "3", "4"): "not 2:4: 3 of 4 groups have more than two non-zeros",
        Reason("never-called"): "did not run for these inputs",
        Reason("padded-convolution", "(1, 1)"): "1x1 convolution with padding (1, 1): no plain matrix product",
    }
    for reason, line in words.items():
        assert reason.words() == line
    for code in get_args(TorchKernelCode):
        assert "{" not in Reason(code, "1", "2").words()
        assert advise(Reason(code))
    assert ProductLayer(name="w", module="m", kind="Linear", shape=(2, 4), m=3, n=2, k=4).flops == 48


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(DTYPES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpus_sparse_product_is_the_dense_one_by_a_sparse_kernel(backend, name):
    capability = torch.cuda.get_device_capability()
    states = backend_states(capability, cusparselt_version=torch.backends.cusparselt.version(), cuda_build=True)
    state = next(state for state in states if state.name == backend)
    if not state.available:
        pytest.skip(f"missing: {describe_state(state)}")
    x_MK, w_NK = draw_operands(256, 256, 512, DTYPES[name], device="cuda", seed=0)
    call = sparse_product(x_MK, w_NK, backend)
    expected = multiply_dense(x_MK, w_NK)
    assert relative_error(call(), expected) <= (0 if name == "int8" else 0.01)
    assert any(is_sparse_kernel(run.name) for run in kernels_of(call))
    assert not any(is_sparse_kernel(run.name) for run in kernels_of(lambda: multiply_dense(x_MK, w_NK)))


@pytest.mark.gpu
def test_a_searched_algorithm_computes_the_same():
    if not torch.backends.cusparselt.is_available():
        pytest.skip("missing: cuSPARSELt in torch")
    x_MK, w_NK = draw_operands(256, 256, 512, torch.bfloat16, device="cuda", seed=0)
    algorithm = search_algorithm(x_MK, w_NK)
    found = sparse_product(x_MK, w_NK, "cusparselt", algorithm=algorithm)()
    assert relative_error(found, multiply_dense(x_MK, w_NK)) <= 0.01


@pytest.mark.gpu
def test_a_packed_weight_on_a_gpu_takes_either_layout_and_gives_the_dense_product():
    states = backend_states(
        torch.cuda.get_device_capability(),
        cusparselt_version=torch.backends.cusparselt.version(),
        cuda_build=True,
    )
    backend = next(state.name for state in states if state.available)
    x_MK, w_NK = draw_operands(200, 256, 512, torch.float16, device="cuda", seed=0)
    weight = nn.Parameter(packer(backend)(w_NK), requires_grad=False)
    bias = torch.randn(256, device="cuda").half()
    with torch.no_grad():
        expected = functional.linear(x_MK, w_NK, bias)
        for rows in (x_MK, x_MK.t().contiguous().t()):
            assert relative_error(functional.linear(rows, weight, bias), expected) <= 0.01
