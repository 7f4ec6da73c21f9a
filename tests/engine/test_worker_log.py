"""The reason of a failure is found in every form in which TensorRT's lines reach a log."""

import pytest

from nm2trt.engine.worker_log import explain


@pytest.mark.parametrize(
    "line",
    [
        "[E] the reason",
        "[!] the reason",
        "[F] the reason",
        "[TRT] [E] the reason",
        "[11/26/2026-10:00:00] [TRT] [E] the reason",
        "[11/26/2026-10:00:00] [E] the reason",
    ],
)
def test_every_prefix_is_known(line):
    assert explain(f"[I] started\n[W] slow\n{line}\n[I] ended\n", "nothing") == "the reason"


def test_other_lines_are_no_errors():
    assert explain("[W] [E]xit\nE the end\n[I] Error Code 3\n", "nothing") == "nothing"
