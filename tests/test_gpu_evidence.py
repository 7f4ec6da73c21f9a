"""make test-gpu fails where no test of a mark ran, whatever the others did."""

import pytest
from gpu_evidence import EXIT_MACHINE, count_run, exit_code

JUNIT = '<testsuites><testsuite tests="{tests}" skipped="{skipped}" failures="0" errors="0"/></testsuites>'


@pytest.mark.parametrize(
    ("codes", "ran", "expected"),
    [
        ({"tensorrt": 0, "gpu": 0}, {"tensorrt": 3, "gpu": 2}, 0),
        ({"tensorrt": 0, "gpu": 0}, {"tensorrt": 0, "gpu": 2}, EXIT_MACHINE),
        ({"tensorrt": 5, "gpu": 0}, {"tensorrt": 0, "gpu": 2}, EXIT_MACHINE),
        ({"tensorrt": 1, "gpu": 0}, {"tensorrt": 3, "gpu": 2}, 1),
        ({"tensorrt": 0, "gpu": 1}, {"tensorrt": 0, "gpu": 2}, 1),
    ],
)
def test_every_mark_has_to_have_run(codes, ran, expected):
    assert exit_code(codes, ran) == expected


def test_skipped_tests_did_not_run(tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT.format(tests=5, skipped=5))
    assert count_run(path) == 0
    path.write_text(JUNIT.format(tests=5, skipped=2))
    assert count_run(path) == 3
    assert count_run(tmp_path / "none.xml") == 0
