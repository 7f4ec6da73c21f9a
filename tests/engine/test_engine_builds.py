"""Real builds. TensorRT-RTX's need its package, TensorRT's the package and a GPU."""

import numpy as np
import onnx
import pytest
import torch
from helpers import requires
from onnx import TensorProto, helper
from run_folders import DIGITS, prune_slowly, random_network, sparse_names

from nm2trt.artifacts import FactState
from nm2trt.engine import EngineJob, TensorrtBuilder, TensorrtRtxBuilder, chosen_fact, compare_plans
from nm2trt.errors import ConfigError
from nm2trt.export import onnx_bytes, onnx_from_module

PROFILE = {"input": ((1, *DIGITS), (8, *DIGITS), (64, *DIGITS))}


def sparse_onnx(path, name, seed=0, precision="fp16"):
    module = random_network(name, seed)
    with torch.no_grad():
        for weight in sparse_names(module):
            module.get_parameter(weight).copy_(prune_slowly(module.get_parameter(weight)))
    path.write_bytes(onnx_bytes(onnx_from_module(module, DIGITS, precision=precision)))
    return path


def build(path, folder, arm, builder=None, sm="80", profile=PROFILE):
    builder = builder or TensorrtRtxBuilder()
    folder.mkdir(exist_ok=True)
    return builder.build(
        EngineJob(backend=builder.name, onnx=path, folder=folder, arm=arm, sm=sm, profile=profile),
    )


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return sparse_onnx(tmp_path_factory.mktemp("onnx") / "mlp.onnx", "mlp")


@requires(rtx=True)
class TestRtx:
    def test_the_flag_changes_nothing_and_other_things_do(self, mlp, tmp_path):
        """The day this fails, RTX has begun to honour SPARSE_WEIGHTS ahead of time: then the evidence can be read."""
        dense = build(mlp, tmp_path / "a", "control")
        sparse = build(mlp, tmp_path / "a", "sparse")
        assert (dense.error, sparse.error) == (None, None)
        assert "SPARSE_WEIGHTS" not in dense.flags
        assert "SPARSE_WEIGHTS" in sparse.flags
        plan = (tmp_path / "a" / "control.plan").read_bytes()
        assert plan == (tmp_path / "a" / "sparse.plan").read_bytes()
        assert dense.sha256 == sparse.sha256
        # Controls: a plan is no constant.
        other_sm = build(mlp, tmp_path / "b", "control", sm="86")
        other_weights = build(sparse_onnx(tmp_path / "other.onnx", "mlp", seed=1), tmp_path / "c", "control")
        assert len({dense.sha256, other_sm.sha256, other_weights.sha256}) == 3

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_a_residual_network_compiles_and_its_plans_differ_in_internal_numbers_at_most(self, tmp_path, precision):
        path = sparse_onnx(tmp_path / "net.onnx", "resnet8", precision=precision)
        records = [build(path, tmp_path / "out", arm) for arm in ("control", "sparse")]
        assert [record.error for record in records] == [None, None]
        compared = compare_plans(tmp_path / "out" / "control.plan", tmp_path / "out" / "sparse.plan")
        assert compared.relation in ("identical", "renumbered")
        fact = chosen_fact(records, tmp_path / "out", why_none="")
        assert fact.state is FactState.UNKNOWN
        assert "compiles for SM80; sparsity not observable" in fact.evidence
        assert compared.sentence in fact.evidence

    def test_the_log_is_kept_verbose_scrubbed_and_silent_on_sparsity(self, mlp, tmp_path):
        record = build(mlp, tmp_path / "out", "sparse")
        log = (tmp_path / "out" / record.log).read_text()
        assert "Importing initializer: hidden1.weight" in log
        assert "(Sparsity)" not in log
        assert str(tmp_path) not in log
        assert "site-packages>/tensorrt_rtx" in log
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sparse.log", "sparse.plan"]

    def test_refused_operators_are_all_named(self, tmp_path):
        nodes = [
            helper.make_node("Bogus", ["input"], ["y"], name="bad_one", domain="x"),
            helper.make_node("Stranger", ["y"], ["z"], name="bad_two", domain="x"),
        ]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", *DIGITS]) for name in ("input", "z")]
        graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("x", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "bogus.onnx")
        record = build(tmp_path / "bogus.onnx", tmp_path / "out", "control")
        assert record.file is None
        for word in ("bad_one (Bogus)", "bad_two (Stranger)", "the ONNX parser refused"):
            assert word in record.error
        assert "\n" not in record.error
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["control.log"]

    def test_an_impossible_profile_is_an_error_with_tensorrts_words(self, mlp, tmp_path):
        record = build(mlp, tmp_path / "out", "control", profile={"input": ((8, *DIGITS), (4, *DIGITS), (2, *DIGITS))})
        assert record.file is None
        assert "profile" in record.error
        assert "cudaError" not in record.error

    def test_no_onnx_is_an_error(self, tmp_path):
        (tmp_path / "junk.onnx").write_bytes(b"junk")
        record = build(tmp_path / "junk.onnx", tmp_path / "out", "control")
        assert record.file is None
        assert record.error
        assert record.builder_version

    def test_targets_come_from_the_library(self):
        assert TensorrtRtxBuilder().resolve_sm(None) == "80"
        assert TensorrtRtxBuilder().resolve_sm("86") == "86"
        with pytest.raises(ConfigError, match=r"SM42.*choose from 75, 80"):
            TensorrtRtxBuilder().resolve_sm("42")


@pytest.mark.gpu
@pytest.mark.tensorrt
class TestTensorrt:
    def test_both_arms_build_are_inspected_and_compute_what_onnx_runtime_computes(self, tmp_path):
        import onnxruntime
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        path = sparse_onnx(tmp_path / "net.onnx", "resnet8")
        builder = TensorrtBuilder()
        sm = builder.resolve_sm(None)
        records = [build(path, tmp_path / "out", arm, builder, sm) for arm in ("control", "sparse")]
        assert [record.error for record in records] == [None, None]
        assert [("SPARSE_WEIGHTS" in record.flags) for record in records] == [False, True]
        x = np.random.default_rng(0).standard_normal((8, *DIGITS)).astype(np.float32)
        expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
        for record in records:
            assert (tmp_path / "out" / f"{record.arm}.layers.json").stat().st_size > 100
            with TrtRunner(EngineFromBytes((tmp_path / "out" / record.file).read_bytes())) as runner:
                found = runner.infer({"input": x})["logits"]
            assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
        fact = chosen_fact(records, tmp_path / "out", why_none="")
        assert f"SM{sm}" in fact.evidence

    def test_another_sm_is_refused(self):
        with pytest.raises(ConfigError, match="GPU that is present"):
            TensorrtBuilder().resolve_sm("75" if TensorrtBuilder().resolve_sm(None) != "75" else "80")
