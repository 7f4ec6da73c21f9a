"""Runs things on the double of TensorRT; imported as `from tensorrt_double.double import ...`."""

import os
from pathlib import Path

import pytest
from helpers import REPOSITORY, nm2trt

HOME = REPOSITORY / "build" / "tensorrt-double"
SITE = Path(__file__).resolve().parent / "site"
VERSIONS = ("10.16", "11.4")


def missing(version):
    """What keeps the double of a version from running here; "" where nothing does."""
    wanted = (HOME / f"bindings-{version}", HOME / f"stubs-{version.partition('.')[0]}")
    lacking = [path.name for path in wanted if not path.is_dir()]
    return f"{', '.join(lacking)} of build/tensorrt-double (make tensorrt-double)" if lacking else ""


def double_environment(version, *faults, torch=""):
    """Environment of a process that imports the double as `tensorrt`.

    Args:
        version: One of VERSIONS.
        faults: Of `tensorrt._version.FAULTS`.
        torch: "no_driver" or "old_driver": torch sees no GPU, for that reason.
    """
    path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": path,
        "NM2TRT_TENSORRT_DOUBLE": str(HOME),
        "NM2TRT_TENSORRT_DOUBLE_VERSION": version,
        "NM2TRT_TENSORRT_DOUBLE_FAULTS": ",".join(faults),
        "NM2TRT_TENSORRT_DOUBLE_TORCH": torch,
    }


def nm2trt_on_double(version, *arguments, faults=(), torch=""):
    """Run the command line on the double, in a process of its own."""
    # A driver that is too old is met when torch is imported: no process that has it already may stand in.
    return nm2trt(*arguments, env=double_environment(version, *faults, torch=torch), fresh=bool(torch))


def require_double(version):
    """Skip a test, with the reason, where the double of a version was not prepared."""
    reason = missing(version)
    if reason:
        pytest.skip(f"missing: {reason}")
    return version
