"""Times dense and sparse networks on one machine, or reads what others timed; checks and explains the difference.

What runs networks is imported when it is asked for: reading others' files needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm2trt.profile.config import ProfileConfig, profile_config
    from nm2trt.profile.experiment import profile
    from nm2trt.profile.runners.runner import Runner
    from nm2trt.profile.variants import choose_backend

__all__ = ["ProfileConfig", "Runner", "choose_backend", "profile", "profile_config"]

_HOMES = {
    "ProfileConfig": "config",
    "Runner": "runners.runner",
    "choose_backend": "variants",
    "profile": "experiment",
    "profile_config": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
