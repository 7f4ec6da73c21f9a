"""Installs torch.cuda's double as soon as torch is imported; in the path only of the processes that the tests start."""

import importlib.abc
import importlib.machinery
import os
import sys


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Runs `cuda_double.install` once torch's module is complete."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            import cuda_double

            cuda_double.install()

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("NM2TRT_TENSORRT_DOUBLE"):
    sys.meta_path.insert(0, _AfterTorch())
