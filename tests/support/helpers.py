"""Helpers for tests; imported as `from helpers import ...` (pytest puts tests/support/ on the path)."""

import contextlib
import importlib.util
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from command_server import CommandServers

REPOSITORY = Path(__file__).resolve().parents[2]


def missing_requirements(*, gpu=False, tensorrt=False, rtx=False):
    """Name everything that a test needs and this machine lacks, not only the first."""
    missing = []
    if gpu:
        import torch

        if not torch.cuda.is_available():
            missing.append("an NVIDIA GPU")
    if tensorrt and importlib.util.find_spec("tensorrt") is None:
        missing.append("tensorrt (pip install 'nm2trt[tensorrt]')")
    if rtx and importlib.util.find_spec("tensorrt_rtx") is None:
        missing.append("tensorrt-rtx (pip install 'nm2trt[rtx]')")
    return missing


def requires(**needs):
    """Skip mark that prints every missing thing: `@requires(rtx=True)`."""
    missing = missing_requirements(**needs)
    return pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}")


def examples(count):
    """Hypothesis' settings for a test that needs more or fewer examples than usual; in `make quick`, as much fewer."""
    return hypothesis.settings(max_examples=math.ceil(count * hypothesis.settings.default.max_examples / 100))


_COMMANDS = CommandServers()


def nm2trt(*arguments, cwd=None, env=None, timeout=300, fresh=False):
    """Run the command line as a user does, in a process of its own.

    On Linux that is a fork of one which has imported PyTorch already; `fresh` starts Python anew, for tests of what is
    imported. NM2TRT_TEST_FRESH=1 starts all anew.
    """
    environment = dict(os.environ if env is None else env)
    fresh = fresh or sys.platform != "linux" or bool(os.environ.get("NM2TRT_TEST_FRESH"))
    server = None if fresh else _COMMANDS.find(environment)
    if server is not None:
        return server.run([*map(str, arguments)], cwd=cwd, environment=environment, timeout_s=timeout)
    return subprocess.run(
        [sys.executable, "-P", "-m", "nm2trt", *map(str, arguments)]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-m", "nm2trt", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=timeout,
        check=False,
    )


FORKED_PYTHON = Path(__file__).resolve().parent / "forked_python"


def forked_python(environment, server_environment=None):
    """A Python for programs that start processes of their own, torchrun and scripts: the processes are forks, too.

    Args:
        environment: Of the processes.
        server_environment: What decides at import (a stand-in for a library); the tests' own where it is None.

    Returns:
        The path to call in place of `sys.executable`, and the environment to call it with.
    """
    if sys.platform != "linux" or os.environ.get("NM2TRT_TEST_FRESH"):
        return sys.executable, dict(environment)
    server = _COMMANDS.start(dict(os.environ if server_environment is None else server_environment))
    variables = {"SERVER": server.address, "PYTHON": sys.executable, "LAUNCHER": str(FORKED_PYTHON)}
    return str(FORKED_PYTHON), {**environment, **{f"NM2TRT_TEST_{name}": value for name, value in variables.items()}}


def nm2trt_inline(*arguments):
    """Run the command line in this process: quick, for mistakes that are found before any work."""
    from nm2trt.cli.main import run

    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    # A command settles how OpenMP's threads wait, for its own process.
    for name in os.environ.keys() - before.keys():
        if name.startswith(("OMP_", "GOMP_")):
            del os.environ[name]
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def assert_one_error_line(result, exit_code, *fragments):
    """A user's mistake costs one line on stderr, no traceback, nothing on stdout."""
    assert result.returncode == exit_code, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.startswith("nm2trt: error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for fragment in fragments:
        assert fragment in lines[0], (fragment, lines[0])


def export_run(source, output, *, force=False, progress=None, about=None, engine=None, data_dir=None, **options):
    """`nm2trt.pipelines.export.export_network` with its settings as keywords, checked as the command checks them."""
    from nm2trt.pipelines.export import export_network
    from nm2trt.pipelines.export_config import checked_config

    settings = {"source": {"data_dir": data_dir, **(about or {})}, "engine": engine or {}}
    config = checked_config(output, force=force, **options, **settings)
    return export_network(source, output, config, force=force, progress=progress)
