import errno
import json
import os
import subprocess
import sys

import click
import numpy as np
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline

from nm2trt._version import __version__
from nm2trt.cli import main as cli_main
from nm2trt.errors import ConfigError, InputError, MachineError

HEAVY = (
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "polygraphy",
    "pydantic",
    "rich",
    "sklearn",
)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in cli_main.COMMANDS)])
def test_help_imports_nothing_heavier_than_click(arguments):
    code = (
        "import sys\n"
        "from nm2trt.cli.main import run\n"
        f"code = run({arguments!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('LOADED', loaded, code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED [] 0", result.stdout + result.stderr


def test_help_names_every_command_and_the_exit_codes():
    result = nm2trt("--help")
    assert result.returncode == 0
    for name in cli_main.COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert "Exit codes" in result.stdout


def test_the_list_of_commands_fits_80_columns():
    env = os.environ | {"COLUMNS": "80"}
    lines = nm2trt("--help", env=env).stdout.splitlines()
    listed = lines[lines.index("Commands:") + 1 :]
    assert listed == [f"  {name:<13}  {words}" for name, words in cli_main.COMMANDS.items()]
    assert max(map(len, listed)) <= 80


def test_the_old_name_of_recommend_works_and_says_the_new_one():
    result = nm2trt_inline("plan", "nowhere.onnx", "--gpu", "l4")
    assert "nm2trt plan is called nm2trt recommend now" in result.stderr
    assert_one_error_line(result, 3, "nowhere.onnx")
    assert "plan" not in cli_main.COMMANDS


def pruned_file(folder):
    np.savez(folder / "pruned.npz", **{"fc.weight": np.tile(np.float32([0, 0, 1, 2]), (8, 4))})
    return folder / "pruned.npz"


@pytest.mark.parametrize("place", ["group", "command"])
def test_verbose_logs_details_on_stderr(tmp_path, place):
    file = pruned_file(tmp_path)
    quiet, verbose = (
        nm2trt_inline(*((flag, "verify") if place == "group" else ("verify", flag)), file) for flag in ("-q", "-v")
    )
    assert quiet.returncode == verbose.returncode == 0
    assert quiet.stderr == ""
    assert "fc.weight" in verbose.stderr
    assert quiet.stdout == verbose.stdout
    # One run's wish is not the next one's.
    assert nm2trt_inline("verify", file).stderr == ""


def test_quiet_silences_notes_and_keeps_errors(tmp_path):
    loud = nm2trt_inline("plan", tmp_path / "nowhere.onnx", "--gpu", "l4")
    quiet = nm2trt_inline("-q", "plan", tmp_path / "nowhere.onnx", "--gpu", "l4")
    assert "is called" in loud.stderr
    assert quiet.stderr.startswith("nm2trt: error: ")
    assert quiet.stderr.count("\n") == 1


def test_version():
    assert nm2trt("--version").stdout.strip() == f"nm2trt, version {__version__}"


def test_an_unknown_command_is_wrong_usage():
    result = nm2trt("trian")
    assert result.returncode == 2
    assert "trian" in result.stderr
    assert "Traceback" not in result.stderr


def raising(error):
    @click.command()
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("bad"), 2, "bad"),
        (InputError("bad", where="f", hint="m"), 3, "f: bad; m"),
        (MachineError("bad"), 4, "bad"),
        (OSError(errno.ENOSPC, "No space left on device", "out/model.onnx"), 4, "out/model.onnx: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "secret"), 3, "secret: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_costs_one_line(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(cli_main, "cli", raising(error))
    assert cli_main.run([]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nm2trt: error: ") or "interrupted" in captured.err or code == 130
    if code != 130:
        assert words in captured.err
        assert captured.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli_main, "cli", raising(ZeroDivisionError("oops")))
    assert cli_main.run([]) == 70
    captured = capsys.readouterr()
    assert "ZeroDivisionError: oops" in captured.err
    assert "internal error; please report" in captured.err


def test_a_closed_pipe_is_no_error():
    result = subprocess.run(
        f"{sys.executable} -m nm2trt doctor | head -n 1", shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in result.stderr
    assert "error" not in result.stderr


def test_a_reader_that_went_away_does_not_change_the_verdict(tmp_path):
    np.savez(tmp_path / "pruned.npz", **{"fc.weight": np.tile(np.float32([0, 0, 1, 2]), (8, 4))})
    np.savez(tmp_path / "broken.npz", **{"fc.weight": np.tile(np.float32([0, 0, 1, 2] * 3 + [0, 1, 2, 3]), (8, 1))})
    for name, verdict in (("pruned", 0), ("broken", 1)):
        reads, writes = os.pipe()
        os.close(reads)
        command = [sys.executable, "-m", "nm2trt", "verify", tmp_path / f"{name}.npz"]
        result = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writes)
        assert result.returncode == verdict, result.stderr
        assert "Traceback" not in result.stderr


def test_doctor_prints_one_document():
    result = nm2trt("doctor", "--json")
    assert result.returncode == 0
    document = json.loads(result.stdout)
    assert document["schema"] == "nm2trt.doctor/1"
    found = {finding["name"]: finding for finding in document["findings"]}
    assert found["torch"]["present"]
    for finding in document["findings"]:
        assert finding["present"] or finding["hint"] or finding["name"] in {"python", "disk"}, finding
    if not found["GPU"]["present"]:
        assert document["abilities"]["faster"].startswith("no: needs")


def test_options_are_checked_before_any_work(tmp_path):
    result = nm2trt("train", "--nonsense", "-o", tmp_path / "run")
    assert result.returncode == 2
    assert_one_error_line(nm2trt_inline("train", "--layer", "fc", "-o", tmp_path / "run"), 2, "'fc' has no '='")


@pytest.mark.parametrize("command", ["prune", "package", "export", "profile", "calibrate", "train"])
def test_a_missing_output_is_asked_for(command, tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(b"")
    arguments = [command] if command == "train" else [command, str(source)]
    result = subprocess.run([sys.executable, "-m", "nm2trt", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "'-o' / '--output'" in result.stderr
