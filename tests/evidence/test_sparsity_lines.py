"""The (Sparsity) lines, broken, printed into, and counted wrongly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.evidence import engine_evidence, parse_log
from nm2trt.evidence.sparsity_lines import join_pieces

STAMP = "[07/19/2022-11:08:35] [I] [TRT] "
ELIGIBLE = f"{STAMP}(Sparsity) Layers eligible for sparse math: "
PICKED = f"{STAMP}(Sparsity) TRT inference plan picked sparse implementation for layers: "


def read(text):
    return parse_log(text.split("\n"))


@pytest.mark.parametrize(
    "printed",
    [
        "done",
        "saving engine, done",
        "100%",
        "Engine saved to /tmp/net.plan",
        "3 files written, bye",
        "OK",
        "{'loss': 0.1}",
    ],
)
def test_what_another_program_prints_behind_is_no_layer(printed):
    log = read(f"{ELIGIBLE}Conv_1 + Relu_2, Conv_3\n{PICKED}Conv_1 + Relu_2\n{printed}\n")
    assert log.eligible == {"Conv_1 + Relu_2": True, "Conv_3": False}
    assert engine_evidence(None, log).log_chosen == 1


@pytest.mark.parametrize("printed", ["done", "saving engine, done"])
def test_nothing_chosen_and_a_print_behind_it_is_nothing_chosen(printed):
    assert read(f"{ELIGIBLE}Conv_1\n{PICKED}\n{printed}\n").chosen_count == 0


@pytest.mark.parametrize(
    "broken",
    [
        "Conv_1 +\nRelu_2, Conv_3",
        "Conv_1\n + Relu_2, Conv_3",
        "Conv_1 + Relu_2,\nConv_3",
        "Conv_1 + Relu_2\n, Conv_3",
        "Conv_1 + Re\nlu_2, Conv_3",
        "Conv_1 + Relu_2, Co\nnv_3",
        "\nConv_1 + Relu_2, Conv_3",
    ],
)
def test_a_list_that_was_broken_anywhere_is_whole_again(broken):
    assert list(read(f"{ELIGIBLE}{broken}\n").eligible) == ["Conv_1 + Relu_2", "Conv_3"]


def test_a_break_before_the_colon_is_mended_too():
    log = read(f"{STAMP}(Sparsity) Layers eligible for sparse\nmath: Conv_1, Conv_2\n")
    assert list(log.eligible) == ["Conv_1", "Conv_2"]


def test_brackets_hold_a_list_together():
    log = read(f"{ELIGIBLE}{{ForeignNode[/a/MatMul...\n/b/Softmax]}}, PWN(PWN(/c/Sigmoid),\n/c/Mul), fc\n")
    assert list(log.eligible) == ["{ForeignNode[/a/MatMul.../b/Softmax]}", "PWN(PWN(/c/Sigmoid), /c/Mul)", "fc"]


def test_a_line_of_another_program_within_a_broken_list_is_passed_over():
    log = read(f"{ELIGIBLE}Conv_1 + Relu_2,\nsaving the engine\nConv_3\n")
    assert list(log.eligible) == ["Conv_1 + Relu_2", "Conv_3"]
    assert any("not taken for names of layers" in note for note in log.doubts)


def test_two_builds_in_one_compose_log_keep_their_pairs():
    lines = f"a_1 | {ELIGIBLE}Conv_1, Conv_2\nb_1 | {ELIGIBLE}fc_1\na_1 | {PICKED}Conv_2\nb_1 | {PICKED}\nb_1 | bye\n"
    log = read(lines.replace("a_1", "dense").replace("b_1", "other"))
    assert log.eligible == {"Conv_1": False, "Conv_2": True, "fc_1": False}


FOUND = "[I] [TRT] (Sparsity) Found {} layer(s) eligible to use sparse tactics: {}"
CHOSE = "[I] [TRT] (Sparsity) Chose {} layer(s) using sparse tactics:, {}"


def test_the_lists_of_10_3_are_right_and_its_counts_wrong():
    log = read(FOUND.format(4, "a || b, c, d") + "\n" + CHOSE.format(0, "a || b"))
    assert log.eligible == {"a || b": True, "c": False, "d": False}
    assert (log.eligible_count, log.chosen_count, log.names_layers) == (3, 1, True)
    assert any("(4 eligible, 0 chosen) and its lists (3, 1) disagree" in note for note in log.doubts)


@given(st.integers(1, 9), st.data())
def test_counts_that_10_3_mixes_up_never_reach_the_result(eligible, data):
    names = [f"/m.{index}/Conv" for index in range(eligible)]
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    log = read(FOUND.format(len(names) + len(chosen), ", ".join(names)) + "\n" + CHOSE.format(0, ", ".join(chosen)))
    assert (log.eligible_count, log.chosen_count) == (len(names), len(chosen))


def test_a_list_that_is_shorter_than_its_count_is_not_complete():
    log = read(FOUND.format(40, "a, b") + "\n[I] [TRT] (Sparsity) Chose 7 layer(s) using sparse tactics: a")
    assert not log.names_layers
    assert (log.eligible_count, log.chosen_count) == (40, 7)
    assert any("cut short" in note for note in log.doubts)


def test_a_count_of_none_chosen_is_no_finding_before_10_14():
    lines = "[I] [TRT] (Sparsity) Found 39 layer(s) eligible to use sparse tactics\n"
    lines += "[I] [TRT] (Sparsity) Chose 0 layer(s) using sparse tactics\n"
    for version, known in (("100300", False), ("101401", True)):
        log = read(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec\n{lines}")
        assert log.zero_is_known is known
        assert any("--verbose log decide" in note for note in log.doubts) is not known


@given(st.lists(st.text(alphabet="Conv_12, +|()[]\t done", max_size=12), max_size=6))
def test_joining_never_fails_and_never_invents_text(pieces):
    text, used = join_pieces("(Sparsity) Layers eligible for sparse math: Conv_1", pieces)
    assert 0 <= used <= len(pieces)
    assert len(text) <= len("(Sparsity) Layers eligible for sparse math: Conv_1") + sum(len(one) + 1 for one in pieces)
