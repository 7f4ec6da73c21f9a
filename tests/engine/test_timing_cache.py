"""Timing caches are keyed, combined under a lock, and never overwritten where they were not understood."""

import threading

import pytest

from nm2trt.engine.timing_cache import TimingCacheFile, keep_timing_cache, start_timing_cache

HEAD = b"mine\n"


class Cache:
    def __init__(self, lines):
        self.lines = set(lines)

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.lines |= other.lines
        return True

    def serialize(self):
        return HEAD + b"\n".join(sorted(self.lines))


class Config:
    """As TensorRT's: content of its own version only, and of its own GPU only."""

    def __init__(self, *, same_gpu=True):
        self.same_gpu, self.cache = same_gpu, None

    def create_timing_cache(self, data):
        if data and not data.startswith(HEAD):
            return None
        return Cache(data.removeprefix(HEAD).split(b"\n")) if data else Cache(())

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.lines and not self.same_gpu:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


def file_of(folder, version="10.16.1.11", gpu="NVIDIA A100-SXM4-80GB"):
    return TimingCacheFile.of(folder / "t.cache", version=version, gpu=gpu)


def test_version_and_gpu_are_in_the_name(tmp_path):
    assert file_of(tmp_path).keyed.name == "t.trt10.16.1.11-a100-sxm4-80gb.cache"
    names = {
        file_of(tmp_path, version, gpu).keyed for version in ("10.0.1", "11.4") for gpu in ("NVIDIA L4", "NVIDIA A10")
    }
    assert len(names) == 4
    assert file_of(tmp_path, gpu="").keyed.name.endswith("-gpu.cache")


def test_started_then_read_then_extended(tmp_path):
    file, first = file_of(tmp_path), Config()
    assert start_timing_cache(first, file) == ""
    first.cache.lines.add(b"conv1")
    assert keep_timing_cache(first, file) == f"{file.keyed.name} started"
    second = Config()
    assert start_timing_cache(second, file) == ""
    assert second.cache.lines == {b"conv1"}
    second.cache.lines.add(b"conv2")
    assert keep_timing_cache(second, file) == f"{file.keyed.name} extended"
    assert file.keyed.read_bytes() == HEAD + b"conv1\nconv2"
    assert [path.name for path in tmp_path.iterdir()] == [file.keyed.name]


def test_what_the_user_named_is_read_and_not_written(tmp_path):
    file, config = file_of(tmp_path), Config()
    file.named.write_bytes(HEAD + b"old")
    assert start_timing_cache(config, file) == ""
    assert config.cache.lines == {b"old"}
    keep_timing_cache(config, file)
    assert file.named.read_bytes() == HEAD + b"old"
    assert file.keyed.read_bytes() == HEAD + b"old"


@pytest.mark.parametrize("same_gpu", [True, False])
def test_what_is_not_understood_is_said_and_kept(tmp_path, same_gpu):
    file, config = file_of(tmp_path), Config(same_gpu=same_gpu)
    content = HEAD + b"of another GPU" if not same_gpu else b"of another version"
    file.keyed.write_bytes(content)
    assert "refused by TensorRT" in start_timing_cache(config, file)
    assert config.cache.lines == set()
    config.cache.lines.add(b"new")
    said = keep_timing_cache(config, file)
    if same_gpu:
        assert said == f"{file.keyed.name} left as it is: TensorRT cannot combine its content"
        assert file.keyed.read_bytes() == content
    else:
        assert content.splitlines()[1] in file.keyed.read_bytes()


def test_builds_that_share_a_file_lose_nothing(tmp_path):
    file = file_of(tmp_path)
    ready = threading.Barrier(8)

    def build(name):
        config = Config()
        start_timing_cache(config, file)
        config.cache.lines.add(name)
        ready.wait()
        keep_timing_cache(config, file)

    threads = [threading.Thread(target=build, args=(b"kernel%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = file.keyed.read_bytes().removeprefix(HEAD).split(b"\n")
    assert kept == sorted(b"kernel%d" % number for number in range(8))


def test_a_builder_without_timings_writes_nothing(tmp_path):
    assert keep_timing_cache(Config(), file_of(tmp_path)) == "the builder kept no timings"
    assert not list(tmp_path.iterdir())
