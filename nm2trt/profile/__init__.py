"""Times dense and sparse networks on one machine, or reads what others timed; judges and explains the difference.

What runs networks is imported when it is asked for: reading others' files needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm2trt.profile.arms import choose_backend
    from nm2trt.profile.config import ProfileConfig, profile_config
    from nm2trt.profile.experiment import profile
    from nm2trt.profile.runner import Runner

__all__ = ["ProfileConfig", "Runner", "choose_backend", "profile", "profile_config"]

_HOMES = {
    "ProfileConfig": "config",
    "Runner": "runner",
    "choose_backend": "arms",
    "profile": "experiment",
    "profile_config": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
