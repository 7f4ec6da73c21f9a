"""Dense against sparse: arms, runners behind one protocol, interleaved timing, statistics."""

from nm2trt.profile.arms import choose_backend
from nm2trt.profile.config import ProfileConfig, profile_config
from nm2trt.profile.experiment import profile
from nm2trt.profile.runner import Runner

__all__ = ["ProfileConfig", "Runner", "choose_backend", "profile", "profile_config"]
