"""Build logs in both families, broken ones, and what RTX writes; texts made by hand after the documented forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.evidence import parse_log, read_log

OLD = """\
[08/05/2024-12:06:54] [I] [TRT] (Sparsity) Layers eligible for sparse math: MatMul_401, Conv_619 + Relu_620, Conv_626
[08/05/2024-12:06:54] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_626
"""
NEW = """\
[I] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: /q/MatMul, PWN(/a/Conv, /a/Relu), /k/MatMul
[I] [TRT] (Sparsity) Chose 2 layer(s) using sparse tactics: /q/MatMul, PWN(/a/Conv, /a/Relu)
"""
COUNTS = """\
(Sparsity) Found 39 layer(s) eligible to use sparse tactics
(Sparsity) Chose 0 layer(s) using sparse tactics
"""


def read(text):
    return parse_log(text.splitlines(keepends=True))


def test_the_old_family_names_its_layers():
    log = read(OLD)
    assert log.eligible == {"MatMul_401": False, "Conv_619 + Relu_620": False, "Conv_626": True}
    assert (log.eligible_count, log.chosen_count, log.names_layers) == (3, 1, True)


def test_the_old_family_with_nothing_chosen():
    log = read(OLD.replace(": Conv_626\n", ":\n"))
    assert (log.eligible_count, log.chosen_count) == (3, 0)
    assert set(log.eligible.values()) == {False}


def test_the_new_family_names_its_layers_when_verbose():
    log = read(NEW)
    assert log.eligible == {"/q/MatMul": True, "PWN(/a/Conv, /a/Relu)": True, "/k/MatMul": False}
    assert (log.eligible_count, log.chosen_count) == (3, 2)


def test_the_new_family_without_names_gives_counts_and_no_layer():
    for text in (COUNTS, COUNTS.replace("\n", ": \n")):
        log = read(text)
        assert (log.eligible, log.names_layers) == ({}, False)
        assert (log.eligible_count, log.chosen_count) == (39, 0)


def test_nothing_eligible_is_a_complete_list():
    log = read("(Sparsity) Found 0 layer(s) eligible to use sparse tactics: \n")
    assert (log.names_layers, log.eligible_count, log.chosen_count) == (True, 0, None)
    assert read("nothing of the kind").eligible_count is None
    assert read("").how == "the log holds no (Sparsity) line"


def test_another_subgraph_adds_and_a_later_pass_decides():
    second = """\
(Sparsity) Found 2 layer(s) eligible to use sparse tactics: /k/MatMul, /v/MatMul
(Sparsity) Chose 1 layer(s) using sparse tactics: /k/MatMul
"""
    log = read(NEW + second)
    assert log.eligible == {"/q/MatMul": True, "PWN(/a/Conv, /a/Relu)": True, "/k/MatMul": True, "/v/MatMul": False}
    assert (log.eligible_count, log.chosen_count) == (4, 3)
    assert "the last that lists a layer decides" in log.how


def test_counts_of_several_passes_are_a_lower_bound_and_say_so():
    log = read(COUNTS + COUNTS.replace("39", "12").replace("Chose 0", "Chose 5"))
    assert (log.eligible_count, log.chosen_count) == (39, 5)
    assert "lower bound" in log.how


def test_lines_that_a_terminal_broke_are_joined():
    broken = OLD.replace("Conv_619 + Relu_620,", "Conv_619 + Re\nlu_620,").replace("MatMul_401, ", "MatMul_401,\n")
    assert read(broken).eligible == read(OLD).eligible


def test_a_torn_log_keeps_what_it_has():
    lines = NEW.splitlines()
    assert read(lines[0]).eligible == dict.fromkeys(["/q/MatMul", "PWN(/a/Conv, /a/Relu)", "/k/MatMul"])
    assert read(lines[1]).eligible == {"/q/MatMul": True, "PWN(/a/Conv, /a/Relu)": True}


RTX = """\
[X] Layers:
    Name: c2_myl0_3, LayerType: correlation, Inputs: [ { Name: relu, Dimensions: [-1,64,8,8], \
Strides: [4096,1,512,64], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], \
Constants: [ { Name: w, Dimensions: \
[64,64,3,3], Strides: [576,1,192,64], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], \
Outputs: [ { Name: y, Dimensions: [-1,64,8,8], Strides: [4096,1,512,64], StrideOrder: [3,0,2,1], Datatype: Half, \
Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: c2]\
\x1f[ONNX Layer: relu[0], b]
    Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, \
Metadata: \n"""


def test_the_dump_of_layers_is_read():
    first, second = read(RTX).layers
    assert (first.name, first.type, first.tactic) == ("c2_myl0_3", "correlation", "__myelin_CASK_STUB")
    assert first.onnx_nodes == ("c2", "relu[0], b")
    assert [tensor.dimensions for tensor in first.constants] == [(64, 64, 3, 3)]
    (tensor,) = first.inputs
    assert (tensor.name, tensor.dimensions, tensor.dtype) == ("relu", (-1, 64, 8, 8), "Half")
    assert tensor.format == "(NHWC) Channel major format"
    assert [tensor.name for tensor in first.outputs] == ["y"]
    assert (second.name, second.tactic, second.onnx_nodes, second.inputs) == ("__mye1_myl0_0", "", (), ())


def test_the_last_dump_of_a_log_is_the_engine():
    assert [layer.name for layer in read(RTX + "[V] another\n" + RTX.replace("c2_myl0_3", "other")).layers] == [
        "other",
        "__mye1_myl0_0",
    ]


@given(st.text(alphabet=st.sampled_from("(Sparsity) Found13layer,:[]{}PWN \nabChose"), max_size=300))
def test_no_text_breaks_the_reader(text):
    log = read(text)
    assert len(log.how) > 0
    assert log.eligible_count is None or log.eligible_count >= len(log.eligible)


@given(
    prefix=st.sampled_from(["", "[I] ", "[08/05/2024-12:06:54] [I] [TRT] "]),
    names=st.lists(st.from_regex(r"\A/?[a-z]{1,5}(\.[0-9])?/Conv( \+ [a-z]{1,4})?\Z"), unique=True, min_size=1),
    data=st.data(),
)
def test_both_families_say_the_same(prefix, names, data):
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    old = (
        f"{prefix}(Sparsity) Layers eligible for sparse math: {', '.join(names)}\n"
        f"{prefix}(Sparsity) TRT inference plan picked sparse implementation for layers: {', '.join(chosen)}\n"
    )
    new = (
        f"{prefix}(Sparsity) Found {len(names)} layer(s) eligible to use sparse tactics: {', '.join(names)}\n"
        f"{prefix}(Sparsity) Chose {len(chosen)} layer(s) using sparse tactics: {', '.join(chosen)}\n"
    )
    expected = {name: name in chosen for name in names}
    assert read(old).eligible == read(new).eligible == expected
    assert read(new).chosen_count == len(chosen)


def test_a_long_log_is_read_line_by_line(tmp_path):
    path = tmp_path / "big.log"
    with path.open("w") as file:
        for index in range(100_000):
            file.write(f"[V] Tactic: 0x{index:016x} Time: 0.{index}\n")
        file.write(NEW)
    assert read_log(path).chosen_count == 2


def test_missing_files_cost_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_log(tmp_path / "none.log")
    with pytest.raises(InputError, match="is a folder"):
        read_log(tmp_path)
    (tmp_path / "bytes.log").write_bytes(b"\x7fELF\x02\x01\x01\x00\x00\x00(Sparsity) ")
    with pytest.raises(InputError, match="a program or library"):
        read_log(tmp_path / "bytes.log")
