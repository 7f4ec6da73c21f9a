"""Data sets with their preprocessing, as arrays."""

from nm2trt.data.dataset import DataSet, data_names, load_data

__all__ = ["DataSet", "data_names", "load_data"]
