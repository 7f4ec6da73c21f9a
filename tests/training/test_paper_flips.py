"""The paper's finding that SR-STE keeps masks still, on real images with the real trainer, in two minutes."""

import json
import os
import subprocess

import pytest
from helpers import REPOSITORY, forked_python

from nm2trt.data.fashion_mnist import system_folder


@pytest.mark.slow
@pytest.mark.skipif(system_folder() is None, reason="missing: Debian's dataset-fashion-mnist")
def test_the_larger_the_decay_the_fewer_masks_flip():
    script = REPOSITORY / "benchmarks" / "paper_flips.py"
    python, environment = forked_python(os.environ)
    command = [python, str(script), "--seeds", "0", "--images", "15000", "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert result.returncode in (0, 1), result.stderr[-3000:]
    ((ste, weak, strong),) = json.loads(result.stdout).values()
    assert ste > weak > strong > 0, "flips a weight of STE, SR-STE 2e-4, SR-STE 2e-3"
    assert result.returncode == 0
