"""The data sets of the paper's comparison, read once for all runs of a process; `--data paper_data:cmudict`."""

from __future__ import annotations

from functools import cache

from nm2trt.data import DataSet, load_data


@cache
def fashion_mnist() -> DataSet:
    return load_data("fashion-mnist")


@cache
def cmudict() -> DataSet:
    return load_data("cmudict")
