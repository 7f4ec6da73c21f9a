"""Globs, shapes and batches of the command line."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.selectors import (
    check_globs,
    escape_glob,
    last_match,
    match_any,
    match_glob,
    parse_batch_range,
    parse_layer_pattern,
    parse_layer_patterns,
    parse_named_shape,
    selectable_names,
    unmatched_globs,
)

_NAMES = st.text(alphabet="ab.*?[]!=/0_", min_size=1, max_size=8)


@given(_NAMES, _NAMES)
def test_an_escaped_name_means_itself_only(name, other):
    assert match_glob(name, escape_glob(name))
    assert match_glob(other, escape_glob(name)) == (other == name or other == escape_glob(name))


@given(_NAMES)
def test_a_name_means_itself_with_brackets_too(name):
    assert match_glob(name, name)


@given(st.text(alphabet="ab*?", max_size=8), st.text(alphabet="ab", max_size=8))
def test_stars_and_question_marks_agree_with_a_regular_expression(glob, name):
    pattern = glob.replace("*", ".*").replace("?", ".")
    assert match_glob(name, glob) == (re.fullmatch(pattern, name) is not None)


def test_tensor_module_and_node_names_match_alike():
    names = selectable_names("fc.weight", "/fc/Gemm")
    assert names == ("fc.weight", "/fc/Gemm", "fc")
    assert all(match_any(names, (glob,)) for glob in ("fc", "fc.weight", "/fc/*", "f?"))
    assert not match_any(names, ("FC", "fc.bias"))


def test_the_last_match_counts():
    assert last_match(("a", "b"), ("a", "*", "c")) == "*"
    assert last_match(("a",), ("c",)) is None
    texts = ("a=2:4", "b=1:4", "a=1:8")
    assert list(parse_layer_patterns(texts).items()) == [("b", NMPattern(1, 4)), ("a", NMPattern(1, 8))]


@given(st.lists(st.lists(_NAMES, min_size=1, max_size=3), max_size=4), st.lists(_NAMES, max_size=4))
def test_unmatched_globs_by_a_slow_loop(layers, globs):
    slow = []
    for glob in globs:
        if glob not in slow and not any(match_glob(name, glob) for names in layers for name in names):
            slow.append(glob)
    assert unmatched_globs(layers, globs) == slow


def test_an_unmatched_glob_is_told_near_matches():
    layers = [("layer1.conv1.weight", "/conv1"), ("layer2.conv1.weight",), ("head.weight",)]
    check_globs(layers, ["head*", "/conv1"])
    with pytest.raises(ConfigError, match=r"no layer matches 'layer1.conv.weight'; near it: layer1.conv1.weight"):
        check_globs(layers, ["layer1.conv.weight"])
    with pytest.raises(ConfigError, match=r"no layer matches 'zzz'; the layers are layer1.conv1.weight, .*head.weight"):
        check_globs(layers, ["zzz"])
    with pytest.raises(ConfigError, match="there is no layer"):
        check_globs([], ["zzz"])


@given(_NAMES, st.lists(st.integers(1, 10**6), min_size=1, max_size=16))
def test_shapes_are_read_back(name, sizes):
    for separator in "xX,":
        assert parse_named_shape(f"{name}={separator.join(map(str, sizes))}") == (name, tuple(sizes))


@pytest.mark.parametrize(
    "text", ["x", "=1", "x=", "x=0", "x=1x-2", "x=1x", "x=a", "x=\u0661", "x=" + "x".join("1" * 17)]
)
def test_wrong_shapes_are_refused(text):
    with pytest.raises(ConfigError, match="NAME=1x3x224x224"):
        parse_named_shape(text)


def test_names_may_hold_equals_signs():
    assert parse_layer_pattern("a=b=2:4") == ("a=b", NMPattern(2, 4))
    for text in ("a", "=2:4"):
        with pytest.raises(ConfigError, match="is not GLOB=N:M"):
            parse_layer_pattern(text)


@given(st.lists(st.integers(0, 99), min_size=3, max_size=3))
def test_batch_ranges_are_ordered(numbers):
    text = ":".join(map(str, numbers))
    if numbers == sorted(numbers) and numbers[0]:
        assert parse_batch_range(text) == tuple(numbers)
    else:
        with pytest.raises(ConfigError, match="MIN <= OPT"):
            parse_batch_range(text)


def test_one_number_is_a_whole_range():
    assert parse_batch_range(" 8 ") == (8, 8, 8)
    for text in ("", "1:8", "1:2:3:4", "a"):
        with pytest.raises(ConfigError, match="MIN:OPT:MAX"):
            parse_batch_range(text)
