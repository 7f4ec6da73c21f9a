"""Whatever prints to stdout below a command with --json, one document stands there."""

import json
import re
import subprocess
import sys

from helpers import REPOSITORY, nm2trt_inline

CLI = REPOSITORY / "nm2trt" / "cli"
SCRIPT = """
import ctypes, os, subprocess, sys
import click
from nm2trt.cli.json_output import json_option, print_json

@click.command()
@json_option
def command(as_json):
    print("python's own")
    os.write(1, b"a descriptor's\\n")
    libc = ctypes.CDLL(None)
    libc.puts(b"C's, buffered")
    libc.fflush(None)
    subprocess.run(["echo", "a child's"])
    if as_json:
        print_json('{"one": 1}')
    print("after it")

command(standalone_mode=False)
print("the command is over")
"""


def run(*arguments):
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_only_the_document_reaches_stdout():
    result = run("--json")
    assert result.returncode == 0, result.stderr
    document, _, rest = result.stdout.partition("\n")
    assert json.loads(document) == {"one": 1}
    assert rest == "the command is over\n"
    for words in ("python's own", "a descriptor's", "C's, buffered", "a child's", "after it"):
        assert words in result.stderr


def test_without_it_nothing_is_moved():
    result = run()
    assert result.stdout.count("\n") == 6
    assert result.stderr == ""


def test_a_reader_that_goes_away_changes_nothing():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.rpartition("print(")[0], "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait() == 0, said
    assert "Traceback" not in said


def test_in_one_process_stdout_is_given_back(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # doctor sets it
    before = sys.stdout
    result = nm2trt_inline("doctor", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["schema"]
    assert sys.stdout is before


def test_every_command_with_json_prints_through_it():
    """A document that is echoed another way would land on stderr."""
    with_json = [path for path in CLI.glob("*.py") if "@json_option" in path.read_text(encoding="utf-8")]
    assert len(with_json) > 10
    for path in with_json:
        text = path.read_text(encoding="utf-8")
        assert "print_json(" in text, path.name
        assert not re.search(r"click\.echo\((json|.*to_json)", text), path.name
