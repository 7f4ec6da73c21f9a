import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.artifacts import EngineRecord, FactState
from nm2trt.engine import builders, choose_builder, chosen_fact, compare_plans, faster_fact
from nm2trt.engine.builders import Availability
from nm2trt.engine.evidence import read_evidence
from nm2trt.errors import ConfigError, MachineError


def record(variant, *, file=True, error=None, builder="tensorrt-rtx"):
    return EngineRecord(
        variant=variant,
        file=f"{variant}.plan" if file else None,
        builder=builder,
        builder_version="1.7",
        sm="80",
        flags=["SPARSE_WEIGHTS"] if variant == "sparse" else [],
        sha256=None,
        size_bytes=None,
        seconds=0.0,
        log=f"{variant}.log",
        error=error,
    )


def plans(folder, dense, sparse):
    (folder / "control.plan").write_bytes(dense)
    (folder / "sparse.plan").write_bytes(sparse)
    return [record("control"), record("sparse")]


def test_identical_plans_are_said_to_be_identical(tmp_path):
    fact = chosen_fact(plans(tmp_path, b"x __mye1 y", b"x __mye1 y"), tmp_path, why_none="")
    assert fact.state is FactState.UNKNOWN
    assert "compiles for SM80; sparsity not observable" in fact.evidence
    assert "byte-identical" in fact.evidence


def test_other_plans_are_not_said_to_be_identical(tmp_path):
    fact = chosen_fact(plans(tmp_path, b"x __mye1 y", b"x __mye22 y"), tmp_path, why_none="")
    assert "byte-identical" not in fact.evidence
    assert "numbering" in fact.evidence
    fact = chosen_fact(plans(tmp_path, b"x __mye1 y", b"x __mye1 z"), tmp_path, why_none="")
    assert "identical" not in fact.evidence
    assert "differ" in fact.evidence
    assert fact.state is FactState.UNKNOWN, "a difference does not name a kernel"


@given(
    parts=st.lists(st.binary(max_size=20), min_size=1, max_size=5),
    left=st.integers(0, 99999),
    right=st.integers(0, 99999),
)
def test_numbers_alone_never_make_plans_different(tmp_path_factory, parts, left, right):
    folder = tmp_path_factory.mktemp("plans")
    a, b = (f" __mye{number} ".encode().join(parts) for number in (left, right))
    plans(folder, a, b)
    relation = compare_plans(folder / "control.plan", folder / "sparse.plan").relation
    assert relation == ("identical" if a == b else "renumbered")


def test_failed_and_absent_engines_prove_nothing(tmp_path):
    engines = [record("control"), record("sparse", file=False, error="no such operator")]
    fact = chosen_fact(engines, tmp_path, why_none="")
    assert fact.state is FactState.UNKNOWN
    assert "no such operator" in fact.evidence
    assert chosen_fact([], tmp_path, why_none="no builder").evidence == "no builder"
    assert faster_fact().state is FactState.UNKNOWN


SPARSE = "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_sptensor"
DENSE = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc"


def inspected(folder, *tactics, builder="tensorrt"):
    """The sparse variant of a build whose layers run these kernels, all with weights that hold the pattern."""
    layers = [
        {"Name": f"conv{index}", "LayerType": "CaskConvolution", "HasSparseWeights": 1, "TacticName": tactic}
        for index, tactic in enumerate(tactics)
    ]
    (folder / "sparse.layers.json").write_text(json.dumps({"Layers": layers}))
    plans(folder, b"a", b"b")
    made = record("sparse", builder=builder)
    return made.model_copy(update={"layers": read_evidence(made, folder, None, None).layers})


@pytest.mark.parametrize(
    ("tactics", "state", "words"),
    [
        ((SPARSE, DENSE), FactState.PROVED, "1 of 2 layers with weights run a sparse kernel, 1 a dense one"),
        ((DENSE, DENSE), FactState.DISPROVED, "0 of 2 layers"),
        ((DENSE, ""), FactState.UNKNOWN, "1 do not show it"),
        (("", ""), FactState.UNKNOWN, "sparsity not observable"),
    ],
)
def test_only_kernels_prove_what_was_chosen(tmp_path, tactics, state, words):
    fact = chosen_fact([inspected(tmp_path, *tactics)], tmp_path, why_none="")
    assert fact.state is state
    assert words in fact.evidence


def test_what_rtx_writes_is_no_observation(tmp_path):
    engines = [record("control"), inspected(tmp_path, SPARSE, builder="tensorrt-rtx")]
    assert chosen_fact(engines, tmp_path, why_none="").state is FactState.UNKNOWN


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"Layers": ["conv1"]}', '{"Layers": [{"Name": "a"}]}'])
def test_unreadable_layers_leave_the_fact_unknown(tmp_path, text):
    engines = plans(tmp_path, b"a", b"b")
    (tmp_path / "sparse.layers.json").write_text(text)
    found = read_evidence(engines[1], tmp_path, None, None)
    engines[1] = engines[1].model_copy(update={"layers": found.layers})
    assert chosen_fact(engines, tmp_path, why_none="").state is FactState.UNKNOWN
    if text in ("", "{", "null"):
        assert "sparse.layers.json" in found.notes[0]


def available(monkeypatch, **versions):
    for builder in builders.known_builders():
        here = builder.name in versions
        found = Availability(
            available=here,
            version="9",
            why=f"{builder.name} {'is here' if here else 'is missing'}",
            hint="pip install it",
        )
        monkeypatch.setattr(type(builder), "availability", lambda self, found=found: found)


def test_auto_takes_tensorrt_then_rtx_then_none_and_says_why(monkeypatch):
    available(monkeypatch, **{"tensorrt": 1, "tensorrt-rtx": 1})
    assert choose_builder("auto").builder.name == "tensorrt"
    available(monkeypatch, **{"tensorrt-rtx": 1})
    chosen = choose_builder("auto")
    assert chosen.builder.name == "tensorrt-rtx"
    assert "tensorrt is missing" in chosen.why
    available(monkeypatch)
    chosen = choose_builder("auto")
    assert chosen.builder is None
    assert "tensorrt is missing" in chosen.why
    assert "tensorrt-rtx is missing" in chosen.why


def test_a_builder_asked_for_by_name_is_not_replaced(monkeypatch):
    available(monkeypatch, **{"tensorrt-rtx": 1})
    with pytest.raises(MachineError, match="pip install it"):
        choose_builder("tensorrt")
    assert choose_builder("none").builder is None
    with pytest.raises(ConfigError, match="choose from auto"):
        choose_builder("tvm")


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("nm2trt.tensorrt_api.availability.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MachineError, match=r"pip install 'nm2trt\[rtx\]'"):
        choose_builder("tensorrt-rtx")
    with pytest.raises(MachineError, match=r"tensorrt is not installed and .*pip install 'nm2trt\[tensorrt\]'"):
        choose_builder("tensorrt")
