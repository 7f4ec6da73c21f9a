"""Kill a training run at random moments, resume it each time, and compare the end with a run that was left alone.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0]

Prints the hash of every resumed run's checkpoint beside the undisturbed one's; exit code 1 when any differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = [sys.executable, "-m", "nm2trt", "train"]
SETTINGS = ["--model", "mlp", "--epochs", "20", "--device", "cpu"]


def digest(run: Path) -> str:
    files = json.loads((run / "run.json").read_text())["files"]
    return files["checkpoint.safetensors"]["sha256"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        subprocess.run([*TRAIN, *SETTINGS, "-o", folder / "whole"], check=True, stdout=subprocess.DEVNULL)
        longest = time.perf_counter() - started
        expected = digest(folder / "whole")
        print(f"left alone          {expected}")
        wrong = 0
        for index in range(arguments.kills):
            run = folder / str(index)
            moment_s = moments.uniform(0, longest)
            process = subprocess.Popen([*TRAIN, *SETTINGS, "-o", run], stdout=subprocess.DEVNULL)
            try:
                process.wait(timeout=moment_s)
                how = "ended before"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                how = "state" if (run / "state" / "last.pt").is_file() else "no state yet"
            again = ["--resume"] if (run / "config.toml").is_file() else SETTINGS
            subprocess.run([*TRAIN, *again, "-o", run], check=True, stdout=subprocess.DEVNULL)
            found = digest(run)
            wrong += found != expected
            print(f"killed at {moment_s:5.2f} s   {found}   {how}", flush=True)
    print(f"{arguments.kills - wrong} of {arguments.kills} ended in the same bytes")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
