import subprocess
import sys
import zipfile

import pytest
from helpers import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAPPED = {"training": "nm2trt.training", "calibration": "nm2trt.calibration"}


def configuration():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_folder_of_code_is_a_listed_package():
    folders = {path.parent for path in (REPOSITORY / "nm2trt").rglob("*.py")}
    packages = {".".join(folder.relative_to(REPOSITORY).parts) for folder in folders} | set(MAPPED.values())
    assert set(configuration()["tool"]["setuptools"]["packages"]) == packages


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            REPOSITORY,
        ],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {f"nm2trt/{p.relative_to(REPOSITORY / 'nm2trt').as_posix()}" for p in (REPOSITORY / "nm2trt").rglob("*.py")}
    for folder, package in MAPPED.items():
        code |= {f"{package.replace('.', '/')}/{p.name}" for p in (REPOSITORY / folder).glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code
    assert "nm2trt/py.typed" in names
    templates = {f"nm2trt/report/templates/{p.name}" for p in (REPOSITORY / "nm2trt/report/templates").iterdir()}
    assert templates <= names
    assert templates


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import nm2trt.training, nm2trt.calibration, sys\n"
        "from nm2trt.cli.main import run\n"
        "print(nm2trt.training.__file__)\n"
        "sys.exit(run(['--version']))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
    )
    assert result.stdout.startswith(str(tmp_path))


@pytest.mark.parametrize("folder", sorted(MAPPED))
def test_the_mapped_folders_refuse_a_second_name(folder):
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert result.returncode == 1
    assert f"this folder is imported as nm2trt.{folder}" in result.stderr


def test_nothing_tracked_names_a_machine_or_a_registry():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("missing: a git checkout")
    # Written in halves, so that this file does not find itself.
    paths = ["/" + folder + "/" for folder in ("work", "root", "home", "farm")]
    hosts = ["pypi" + ".org", "npmjs" + ".org", "pypi.nvidia" + ".com"]
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = REPOSITORY / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        assert len(content) < 2**20, f"{name} is over 1 MiB"
        if name == "LICENSE" or b"\0" in content[:1024]:
            continue
        text = content.decode()
        assert not [word for word in paths + hosts if word in text], name
