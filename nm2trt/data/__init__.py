"""Data sets with their preprocessing, in memory or read as they are needed."""

from nm2trt.data.dataset import DataSet
from nm2trt.data.registry import check_data, data_names, load_data, load_data_for
from nm2trt.data.samples import ArraySamples, LazySamples, SampleError, Samples
from nm2trt.data.tasks import Classification, Task

__all__ = [
    "ArraySamples",
    "Classification",
    "DataSet",
    "LazySamples",
    "SampleError",
    "Samples",
    "Task",
    "check_data",
    "data_names",
    "load_data",
    "load_data_for",
]
