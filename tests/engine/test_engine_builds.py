"""Real builds. TensorRT-RTX's need its package, TensorRT's the package and a GPU."""

from pathlib import Path

import onnx
import pytest
import torch
from helpers import requires
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError
from run_folders import DIGITS, prune_slowly, random_network, sparse_names

from nm2trt.artifacts import BatchRange, FactState
from nm2trt.engine import (
    EngineJob,
    EngineSettings,
    Network,
    TensorrtBuilder,
    TensorrtRtxBuilder,
    build_variants,
    chosen_fact,
    compare_plans,
)
from nm2trt.errors import ConfigError, InputError
from nm2trt.export import onnx_bytes, onnx_from_module

PROFILE = {"input": ((1, *DIGITS), (8, *DIGITS), (64, *DIGITS))}


def sparse_onnx(path, name, seed=0, precision="fp16"):
    module = random_network(name, seed)
    with torch.no_grad():
        for weight in sparse_names(module):
            module.get_parameter(weight).copy_(prune_slowly(module.get_parameter(weight)))
    path.write_bytes(onnx_bytes(onnx_from_module(module, DIGITS, precision=precision)))
    return path


def build(path, folder, variant, builder=None, sm="80", profile=PROFILE):
    builder = builder or TensorrtRtxBuilder()
    folder.mkdir(exist_ok=True)
    return builder.build(
        EngineJob(backend=builder.name, onnx=path, folder=folder, variant=variant, sm=sm, profile=profile),
    )


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return sparse_onnx(tmp_path_factory.mktemp("onnx") / "mlp.onnx", "mlp")


@requires(rtx=True)
class TestRtx:
    def test_the_flag_changes_nothing_and_other_things_do(self, mlp, tmp_path):
        """The day this fails, RTX has begun to honor SPARSE_WEIGHTS ahead of time: then the evidence can be read."""
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
        records = [build(path, tmp_path / "out", variant) for variant in ("control", "sparse")]
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
@requires(gpu=True, tensorrt=True)
class TestTensorrt:
    def test_another_sm_is_refused(self):
        with pytest.raises(ConfigError, match="GPU that is present"):
            TensorrtBuilder().resolve_sm("75" if TensorrtBuilder().resolve_sm(None) != "75" else "80")

    def test_settings_reach_the_builder(self, mlp, tmp_path):
        cache = tmp_path / "t.cache"
        settings = EngineSettings(
            timing_cache=cache, workspace="512M", optimization_level=1, refittable=True, rebuilds=2
        )
        (tmp_path / "net.onnx").write_bytes(mlp.read_bytes())
        builder = TensorrtBuilder()
        network = Network(
            folder=tmp_path,
            onnx="net.onnx",
            dense_onnx=None,
            profile=PROFILE,
            batch=None,
            sm=builder.resolve_sm(None),
        )
        steps = []
        records = build_variants(builder, network, settings, lambda variant, rebuild, step: steps.append(step))
        assert [(one.variant, one.rebuild, one.error) for one in records] == [
            ("control", 0, None), ("sparse", 0, None), ("control", 1, None), ("sparse", 1, None),
        ]  # fmt: skip
        assert all("REFIT" in one.flags and "STRICT_NANS" not in one.flags for one in records)
        said = [one.timing_cache.partition(" ") for one in records]
        assert [words for _, _, words in said] == ["started", "extended", "started", "extended"]
        assert [name.partition(".")[0] for name, _, _ in said] == ["t", "t", "timing-2", "timing-2"]
        assert all((tmp_path / name).stat().st_size > 0 for name, _, _ in said)
        assert not cache.exists()
        assert "512.00 MiB" in (tmp_path / "sparse.log").read_text()
        assert any(step is not None for step in steps)

    def test_unsupported_operators_are_all_named(self, tmp_path):
        nodes = [helper.make_node(op, ["x"], [out], name=name) for name, op, out in BOGUS]
        onnx.save(bogus(nodes), tmp_path / "bogus.onnx")
        record = build(tmp_path / "bogus.onnx", tmp_path / "out", "control", TensorrtBuilder(), None)
        assert record.file is None
        for word in ("bad_one (Bogus)", "bad_two (Stranger)"):
            assert word in record.error


BOGUS = [("bad_one", "Bogus", "y"), ("bad_two", "Stranger", "z")]


def bogus(nodes):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *DIGITS]) for name in ("x", "y", "z")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    for node in nodes:
        node.domain = "mine"
    return helper.make_model(helper.make_graph(nodes, "bogus", ports[:1], ports[1:]), opset_imports=opsets)


@requires(rtx=True)
class TestArms:
    @pytest.fixture
    def folder(self, mlp, tmp_path):
        (tmp_path / "net.onnx").write_bytes(mlp.read_bytes())
        return tmp_path

    def variants(self, folder, settings, **network):
        steps = []
        described = {"onnx": "net.onnx", "dense_onnx": None, "profile": PROFILE, "batch": None, "sm": "80"} | network
        records = build_variants(
            TensorrtRtxBuilder(),
            Network(folder=folder, **described),
            settings,
            lambda variant, rebuild, step: steps.append((variant, rebuild, step)),
        )
        return records, steps

    def test_all_arms_with_settings_and_progress(self, folder):
        (folder / "dense.onnx").write_bytes((folder / "net.onnx").read_bytes())
        batch = BatchRange(min=1, opt=8, max=64)
        settings = EngineSettings(workspace="256M", optimization_level=2)
        records, steps = self.variants(folder, settings, dense_onnx="dense.onnx", batch=batch)
        assert [(one.variant, one.file, one.onnx, one.error) for one in records] == [
            ("dense", "dense.plan", "dense.onnx", None),
            ("control", "control.plan", "net.onnx", None),
            ("sparse", "sparse.plan", "net.onnx", None),
        ]
        assert all(one.batch == batch and one.platform and "not used" in one.timing_cache for one in records)
        assert ["SPARSE_WEIGHTS" in one.flags for one in records] == [False, False, True]
        assert not any("STRICT_NANS" in one.flags or "REFIT" in one.flags for one in records)
        log = (folder / "sparse.log").read_text()
        assert "WORKSPACE: 256.00 MiB" in log
        assert "ProfilingVerbosity.DETAILED" in log
        assert [variant for variant, _, step in steps if step is None] == ["dense", "control", "sparse"]
        assert all(0 <= step.done <= step.of for _, _, step in steps if step is not None)
        assert any(step is not None for _, _, step in steps)
        assert {name for layer in records[2].layers for name in layer.torch_names} >= set(
            sparse_names(random_network("mlp"))
        )

    @pytest.mark.not_quick
    def test_several_inputs_and_external_data(self, tmp_path):
        shapes = {"a": ["batch", 32], "b": ["batch", 32]}
        weight = helper.make_tensor("w", TensorProto.FLOAT16, [32, 64], bytes(32 * 64 * 2), raw=True)
        nodes = [
            helper.make_node("Add", ["a", "b"], ["s"], name="add"),
            helper.make_node("MatMul", ["s", "w"], ["y"], name="mm"),
        ]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in shapes.items()]
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 64])
        model = helper.make_model(
            helper.make_graph(nodes, "g", ports, [out], [weight]),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
        profile = dict.fromkeys(shapes, ((1, 32), (4, 32), (8, 32)))
        records, _ = self.variants(tmp_path, EngineSettings(rebuilds=2), profile=profile)
        assert [(one.variant, one.rebuild, one.file, one.error) for one in records] == [
            ("control", 0, "control.plan", None),
            ("sparse", 0, "sparse.plan", None),
            ("control", 1, "control-2.plan", None),
            ("sparse", 1, "sparse-2.plan", None),
        ]
        assert {name for layer in records[1].layers for name in layer.torch_names} == {"w"}
        (tmp_path / "net.data").unlink()
        with pytest.raises(InputError, match=r"net\.data"):
            self.variants(tmp_path, EngineSettings(), profile=profile)

    @pytest.mark.parametrize("wish", [{"refittable": True}, {"timing_cache": Path("t.cache")}])
    def test_what_rtx_cannot_do_is_refused_before_anything_is_built(self, folder, wish):
        with pytest.raises(ConfigError, match="TensorRT-RTX"):
            self.variants(folder, EngineSettings(**wish))
        assert [path.name for path in folder.iterdir()] == ["net.onnx"]


@given(st.integers(1, 1 << 20), st.sampled_from([("", 20), ("M", 20), ("MiB", 20), ("G", 30), ("gb", 30), ("K", 10)]))
def test_sizes_are_read_with_their_units(number, unit):
    assert EngineSettings(workspace=f"{number}{unit[0]}").workspace == number << unit[1]


@pytest.mark.parametrize(
    "wrong", [{"workspace": "x"}, {"workspace": "0"}, {"workspace": "-1G"}, {"workspace": "1T"}, {"workspace": "²G"},
              {"optimization_level": 6}, {"rebuilds": 0}, {"rebuilds": 101}, {"timing_cache": "."},
              {"timing_cache": "none/t.cache"}, {"dense": "none.onnx"}, {"nonsense": 1}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        EngineSettings(**wrong)
