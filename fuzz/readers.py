"""Throw broken files at every reader of `nm2trt verify`: each must be checked or refused in one line, soon.

    python fuzz/readers.py [--files 100000] [--first 0] [--seconds 10] [--megabytes 1024]

File number i is made from i alone: a seed (fuzz/seeds.py, in turn), then 1 to 6 mutations drawn with i as the random
seed. So a finding is repeated by `--first i --files 1`. Files are read in worker processes with a limit on memory
(beyond what the imports take) and on time per file; a worker that dies or hangs names the file and is replaced.
With `--atheris SECONDS` (package atheris) the mutations are guided by coverage of nm2trt's own code instead.

Prints counts; exit code 1 if any file did anything but be checked or refused.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = 2000
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**64 - 1)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 4, 8, 16, 64)), len(data) - at)
        kind = rng.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
        elif kind == 5:
            size = rng.choice((1, 2, 4, 8))
            data[at : at + size] = (rng.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(
                size, rng.choice(("little", "big"))
            )
        elif kind == 6:
            other = rng.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        elif kind == 7:
            digits = [index for index, byte in enumerate(data) if 48 <= byte < 58]
            if digits:
                data[rng.choice(digits)] = rng.choice(b"0123456789-e.")
        else:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
    return bytes(data)


def check_layers(path: Path) -> str:
    """`checked`, or `refused` where the reader said so."""
    from nm2trt.errors import InputError
    from nm2trt.verify import json_of, verify_path

    try:
        json_of([verify_path(path)])
    except InputError as error:
        if "\n" in str(error):
            raise AssertionError("the error is not one line") from error
        return "refused"
    return "checked"


def work(first: int, count: int, seconds: float, megabytes: int) -> None:
    """Read files first to first + count; the number of each is printed before it is opened."""
    import torch
    from seeds import SEEDS, write_neighbors

    torch.set_num_threads(1)
    raw = {name: make() for name, make in SEEDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_neighbors(Path(folder))
        for name, valid in raw.items():
            (Path(folder) / name).write_bytes(valid)
            if check_layers(Path(folder) / name) != "checked":
                raise AssertionError(f"the seed {name} itself is not read")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_000_000,) * 2)
        names = list(raw)
        for number in range(first, first + count):
            name = names[number % len(names)]
            path = Path(folder) / name
            path.write_bytes(mutated(raw[name], random.Random(number)))
            print(f"{number} {name}", end=" ", flush=True)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                print(check_layers(path), flush=True)
            except BaseException as error:  # noqa: BLE001 -- whatever it is, it is a finding
                print(f"FAILED {type(error).__name__}: {str(error)[:200]!r}", flush=True)
            signal.setitimer(signal.ITIMER_REAL, 0)


def drive(files: int, first: int, seconds: float, megabytes: int) -> int:
    """Start workers one after the other; those that die are replaced behind the file that killed them."""
    counts: collections.Counter[str] = collections.Counter()
    findings: list[str] = []
    started, number, end = time.monotonic(), first, first + files
    while number < end:
        block = min(BLOCK, end - number)
        arguments = ["--work", "--first", number, "--files", block, "--seconds", seconds, "--megabytes", megabytes]
        result = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)
        lines = [line.split(" ", 2) for line in result.stdout.splitlines() if line[:1].isdigit()]
        if not lines:
            raise SystemExit(f"a worker did not start:\n{result.stderr[-2000:]}")
        for _, name, *outcome in lines:
            words = outcome[0] if outcome and outcome[0] else f"FAILED worker died ({result.returncode})"
            counts[f"{Path(name).suffix[1:]} {words.split()[0]}"] += 1
        findings += [" ".join(line) for line in lines if len(line) < 3 or line[2] not in ("checked", "refused")]
        number = int(lines[-1][0]) + 1
        print(f"{number - first} files, {len(findings)} findings, {time.monotonic() - started:.0f} s", flush=True)
    for finding in findings:
        print("FINDING", finding)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    print(f"{files} files, {len(findings)} findings, {time.monotonic() - started:.0f} s")
    return 1 if findings else 0


def guided(seconds: int) -> None:
    """Coverage-guided, with atheris; the first byte of an input chooses the format."""
    import atheris

    with atheris.instrument_imports(include=["nm2trt"]):
        import nm2trt.layers.huggingface
        import nm2trt.layers.npz_reader
        import nm2trt.layers.onnx_reader
        import nm2trt.layers.safetensors_reader
        import nm2trt.layers.torch_reader
        import nm2trt.verify  # noqa: F401
    from seeds import SEEDS, write_neighbors

    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name, "files"), Path(name, "corpus")
        folder.mkdir(), corpus.mkdir()
        write_neighbors(folder)
        names = list(SEEDS)
        for index, (seed, make) in enumerate(SEEDS.items()):
            (corpus / seed).write_bytes(bytes([index]) + make())

        def one(data: bytes) -> None:
            path = folder / names[data[0] % len(names) if data else 0]
            path.write_bytes(data[1:])
            check_layers(path)

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-timeout=20", str(corpus)], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--atheris", type=int, metavar="SECONDS")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.atheris:
        guided(arguments.atheris)
        return 0
    if arguments.work:
        work(arguments.first, arguments.files, arguments.seconds, arguments.megabytes)
        return 0
    return drive(arguments.files, arguments.first, arguments.seconds, arguments.megabytes)


if __name__ == "__main__":
    sys.exit(main())
