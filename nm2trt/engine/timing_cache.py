"""The file of kernel timings: one for each TensorRT version and GPU, extended under a lock, never lost.

TensorRT takes a cache only from its own version and the same GPU, and answers any other with an empty one. So the
version and the GPU are part of the name, a file that was not understood is left as it is, and what another process
wrote in the meantime is combined with what this one found.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import write_atomic
from nm2trt.tensorrt_api.types import IBuilderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingCacheFile:
    """Where a build's timings come from and go to."""

    named: Path
    """As the user named it: read where there is no `keyed` yet, never written."""
    keyed: Path
    """`named` with the version and the GPU in its name."""

    @classmethod
    def of(cls, named: Path, *, version: str, gpu: str) -> TimingCacheFile:
        """`timing.cache` is keyed as `timing.trt10.16.1.11-a100-sxm4-80gb.cache`."""
        letters = (letter if letter.isalnum() else "-" for letter in gpu.lower().removeprefix("nvidia "))
        words = "".join(letters).strip("-") or "gpu"
        return cls(named=named, keyed=named.with_name(f"{named.stem}.trt{version}-{words}{named.suffix}"))

    @property
    def source(self) -> Path | None:
        """The file that is read; None where there is none."""
        return next((path for path in (self.keyed, self.named) if path.is_file()), None)


def start_timing_cache(config: IBuilderConfig, file: TimingCacheFile) -> str:
    """Give the builder what is known, before it builds.

    Returns:
        "" where all went well; else what was refused, in words.

    Raises:
        OSError: The file cannot be read.
    """
    source = file.source
    known = b"" if source is None else source.read_bytes()
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return ""
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, ignore_mismatch=False)
    name = file.keyed.name if source is None else source.name
    return f"{name} refused by TensorRT: it is damaged, or another version's or GPU's"


def keep_timing_cache(config: IBuilderConfig, file: TimingCacheFile) -> str:
    """Write the builder's timings, after the build, together with what others wrote meanwhile.

    Returns:
        What was done, in words.

    Raises:
        OSError: The file cannot be written; the old one is as it was.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return "the builder kept no timings"
    with _locked(file.keyed.parent):
        there = file.keyed.is_file()
        if there:
            # Read again: another build may have extended it since this one started.
            other = config.create_timing_cache(file.keyed.read_bytes())
            if other is None or not cache.combine(other, ignore_mismatch=False):
                return f"{file.keyed.name} left as it is: TensorRT cannot combine its content"
        buffer = cache.serialize()
        if buffer is None:
            return f"{file.keyed.name} not written: TensorRT could not serialize its timings"
        write_atomic(file.keyed, bytes(buffer))
    return f"{file.keyed.name} {'extended' if there else 'started'}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, which ends with the process and leaves no file; where there is no `fcntl`, none."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
