"""Other libraries' errors as one line."""

import pytest

from nm2trt.library_errors import one_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("  bad value\nTraceback\n"), "bad value"),
        (ValueError(), "ValueError"),
        (ValueError(" \n "), "ValueError"),
        ("", "no reason given"),
        ("first. " + "x" * 300, "first"),
        ("word " * 60, "word " * 39 + "word ..."),
    ],
)
def test_the_first_line_and_never_half_a_word(error, expected):
    assert one_line(error) == expected


def test_all_lines_where_the_first_says_little():
    error = RuntimeError("Error(s) in loading:\n\tsize mismatch\n  for a")
    assert one_line(error, whole=True) == "Error(s) in loading: size mismatch for a"
    assert one_line(ValueError(), whole=True) == "ValueError"
    assert one_line("ab cd ef", longest=5) == "ab ..."
