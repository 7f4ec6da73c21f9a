"""From N:M sparse training to TensorRT engines, with proof at every step that the sparsity is real.

The names below are what others may import; each is loaded when it is first asked for, so that `import nm2trt` stays
light and needs none of the extras (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nm2trt._version import __version__

if TYPE_CHECKING:
    from nm2trt.pattern import NMPattern
    from nm2trt.pipelines.calibrate import CalibrationConfig, calibrate_model
    from nm2trt.pipelines.estimate import EstimateConfig, estimate_network
    from nm2trt.pipelines.export import export_network
    from nm2trt.pipelines.export_config import ExportConfig
    from nm2trt.pipelines.inspect import InspectConfig, inspect_build
    from nm2trt.pipelines.model_card import write_model_card
    from nm2trt.pipelines.package import PackageConfig, package_build
    from nm2trt.pipelines.profile import ProfileConfig, ProfileSources, profile_build
    from nm2trt.pipelines.prune import PruneConfig, prune_file
    from nm2trt.pipelines.prune_data import DataConfig
    from nm2trt.pipelines.recommend import recommend_layers
    from nm2trt.pipelines.refit import refit_build
    from nm2trt.pipelines.verify import VerifyConfig, verify_file
    from nm2trt.training import Sparsifier, sparsify

__all__ = [
    "CalibrationConfig",
    "DataConfig",
    "EstimateConfig",
    "ExportConfig",
    "InspectConfig",
    "NMPattern",
    "PackageConfig",
    "ProfileConfig",
    "ProfileSources",
    "PruneConfig",
    "Sparsifier",
    "VerifyConfig",
    "__version__",
    "calibrate_model",
    "estimate_network",
    "export_network",
    "inspect_build",
    "package_build",
    "profile_build",
    "prune_file",
    "recommend_layers",
    "refit_build",
    "sparsify",
    "verify_file",
    "write_model_card",
]

_HOMES = {
    "CalibrationConfig": "pipelines.calibrate",
    "DataConfig": "pipelines.prune_data",
    "EstimateConfig": "pipelines.estimate",
    "ExportConfig": "pipelines.export_config",
    "InspectConfig": "pipelines.inspect",
    "NMPattern": "pattern",
    "PackageConfig": "pipelines.package",
    "ProfileConfig": "pipelines.profile",
    "ProfileSources": "pipelines.profile",
    "PruneConfig": "pipelines.prune",
    "Sparsifier": "training",
    "VerifyConfig": "pipelines.verify",
    "calibrate_model": "pipelines.calibrate",
    "estimate_network": "pipelines.estimate",
    "export_network": "pipelines.export",
    "inspect_build": "pipelines.inspect",
    "package_build": "pipelines.package",
    "profile_build": "pipelines.profile",
    "prune_file": "pipelines.prune",
    "recommend_layers": "pipelines.recommend",
    "refit_build": "pipelines.refit",
    "sparsify": "training",
    "verify_file": "pipelines.verify",
    "write_model_card": "pipelines.model_card",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
