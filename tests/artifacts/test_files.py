import errno
import hashlib
import os
from pathlib import Path

import pytest

from nm2trt.artifacts import file_records, sha256_of, staged_folder, write_atomic
from nm2trt.errors import ConfigError


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_staged_folder_appears_whole_at_the_end(tmp_path):
    target = tmp_path / "a" / "b" / "run"
    with staged_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert tree(tmp_path) == {"a/b/run/x": b"1"}
    assert oct(target.stat().st_mode & 0o777) == oct(0o777 & ~current_umask())


def current_umask():
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_nothing_not_even_parents(tmp_path, error):
    def work():
        with staged_folder(tmp_path / "a" / "run") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "x").write_text("1")
            raise error

    with pytest.raises(type(error)):
        work()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_without_force(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="--force"), staged_folder(target):
        pytest.fail("must not start")
    assert tree(tmp_path) == {"run/run.json": b"{}"}


def test_force_replaces_only_what_nm2trt_wrote(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name in ((ours, "run.json"), (theirs, "thesis.tex")):
        folder.mkdir()
        (folder / name).write_text("old")
    with staged_folder(ours, force=True) as folder:
        (folder / "new").write_text("2")
    assert tree(ours) == {"new": b"2"}
    with pytest.raises(ConfigError, match="did not write"), staged_folder(theirs, force=True):
        pytest.fail("must not start")
    assert tree(theirs) == {"thesis.tex": b"old"}


def test_force_keeps_the_old_folder_when_the_new_one_fails(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "run.json").write_text("old")

    def work():
        with staged_folder(target, force=True) as folder:
            (folder / "x").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert tree(tmp_path) == {"run/run.json": b"old"}


def test_force_follows_no_link(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "run.json").write_text("old")
    link.symlink_to(real)
    with pytest.raises(ConfigError, match="no plain folder"), staged_folder(link, force=True):
        pytest.fail("must not start")
    assert tree(real) == {"run.json": b"old"}


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "run"

    def work():
        with staged_folder(target):
            target.mkdir()
            (target / "theirs").write_text("1")

    with pytest.raises(ConfigError):
        work()
    assert tree(tmp_path) == {"run/theirs": b"1"}


def test_an_empty_folder_may_be_filled(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    with staged_folder(target) as folder:
        (folder / "x").write_text("1")
    assert tree(tmp_path) == {"run/x": b"1"}


def test_write_atomic_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new and longer")
    assert tree(tmp_path) == {"f": b"old"}


def test_records_are_of_the_bytes(tmp_path):
    (tmp_path / "d").mkdir()
    content = os.urandom(3_000_000)
    (tmp_path / "d" / "big").write_bytes(content)
    (record,) = file_records(tmp_path).values()
    assert list(file_records(tmp_path)) == ["d/big"]
    assert record.sha256 == hashlib.sha256(content).hexdigest() == sha256_of(Path(tmp_path / "d" / "big"))
    assert record.size_bytes == 3_000_000
