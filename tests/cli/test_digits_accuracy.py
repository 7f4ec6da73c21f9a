"""The promise of the demo on real data: SR-STE 2:4 keeps the dense accuracy, and the zeros are where they belong."""

import statistics

import numpy as np
import onnx
import pytest
from helpers import export_run
from onnx import numpy_helper
from safetensors.numpy import load_file

from nm2trt.training.config import load_config
from nm2trt.training.run import train

SEEDS = (0, 1, 2)
EPOCHS = 12
"""Fewer than the command's 30: less time for the sparse networks to make up for their zeros."""
ONE_POINT = 0.01


def most_in_a_group(weight):
    """Largest number of non-zeros in four neighboring input channels, by a loop over every group."""
    rows = np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])
    return max(int(np.sum(row[start : start + 4] != 0)) for row in rows for start in range(0, len(row), 4))


@pytest.mark.slow
def test_sr_ste_keeps_the_dense_accuracy_over_three_seeds(tmp_path):
    accuracy = {"dense": [], "sr-ste": []}
    for method, values in accuracy.items():
        for seed in SEEDS:
            folder = tmp_path / f"{method}-{seed}"
            document = train(load_config(None, {"method": method, "seed": seed, "epochs": EPOCHS}), folder)
            values.append(document.result.test_score)
    for seed in SEEDS:
        checkpoint = load_file(tmp_path / f"sr-ste-{seed}" / "checkpoint.safetensors")
        export_run(tmp_path / f"sr-ste-{seed}", tmp_path / f"build-{seed}", builder="none")
        graph = onnx.load(tmp_path / f"build-{seed}" / "model.onnx").graph
        exported = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        blocks = [name for name, value in checkpoint.items() if name.startswith("layers.") and value.ndim == 4]
        assert len(blocks) == 8
        for name in blocks:
            assert most_in_a_group(checkpoint[name]) == 2, (seed, name)
            assert most_in_a_group(exported[name]) == 2, (seed, name)
    dense, sparse = statistics.mean(accuracy["dense"]), statistics.mean(accuracy["sr-ste"])
    assert dense > 0.97
    assert sparse >= dense - ONE_POINT, accuracy
