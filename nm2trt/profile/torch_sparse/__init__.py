"""`nm2trt profile --backend torch-sparse`: a network in PyTorch, dense against torch's own 2:4 kernels."""

from nm2trt.profile.torch_sparse.experiment import profile_torch_sparse
from nm2trt.profile.torch_sparse.network import TorchNetwork

__all__ = ["TorchNetwork", "profile_torch_sparse"]
