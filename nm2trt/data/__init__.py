"""Data sets with their preprocessing, in memory or read as they are needed."""

from nm2trt.data.dataset import DataSet
from nm2trt.data.registry import data_names, load_data
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
    "data_names",
    "load_data",
]
