"""The hint against TensorRT's recorded choices."""

import csv

import numpy as np
import pytest

from nm2trt.layers import LayerWeight
from nm2trt.verify import check_layers
from nm2trt.verify.hints import conv_hint


@pytest.mark.parametrize(("file", "dtype", "least"), [("fp16.csv", "", 38), ("int8_odd_layers.csv", "int8", 15)])
def test_hints_hold_on_the_recorded_choices(reference_data, file, dtype, least):
    path = reference_data / "a100-unet" / file
    said = {"likely": [], "unlikely": [], "open": []}
    with path.open() as rows:
        for row in csv.DictReader(rows):
            if int(row["c_in"]) % 4 == 0:
                hint = conv_hint(int(row["c_out"]), int(row["c_in"]), int(row["kernel"]) ** 2, dtype)
                said[hint].append(int(row["sparse_kernel_chosen"]))
    assert all(said["likely"])
    assert not any(said["unlikely"])
    # It commits itself often enough to be of use, and is silent where the record goes both ways.
    assert len(said["likely"]) + len(said["unlikely"]) >= least
    assert 0 < sum(said["open"]) < len(said["open"])


def layer(op, shape, dtype="float16", groups=1):
    weight = np.zeros(shape, np.float16)
    return LayerWeight(
        name="w",
        op=op,
        shape=shape,
        dtype=dtype,
        reduction_axis=1,
        weight=lambda: weight,
        groups=groups,
        graph_dtype=dtype,
    )


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "groups", "hint"),
    [
        ("conv", (256, 256, 3, 3), "float16", 1, "likely"),
        ("conv", (64, 64, 3, 3), "float16", 1, "open"),
        ("conv", (32, 256, 3, 3), "float16", 1, "unlikely"),
        ("conv", (512, 512, 3, 3), "int8", 1, "open"),
        ("linear", (1024, 1024), "float16", 1, "open"),
        ("conv", (256, 256, 3, 3), "float16", 2, ""),
        ("conv", (256, 3, 3, 3), "float16", 1, ""),
        ("conv", (256, 256, 3, 3), "float32", 1, ""),
    ],
)
def test_only_eligible_layers_get_a_hint(op, shape, dtype, groups, hint):
    document = check_layers([layer(op, shape, dtype, groups)])
    assert document.layers[0].hint == hint
    assert any("only a build tells" in note for note in document.notes) == bool(hint)
