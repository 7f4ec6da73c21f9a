"""Everything that a GPU can tell with torch alone: tests, 2:4 products, networks, training's cost, into one archive.

    make gpu PYTHON=python3                       # on a machine with an NVIDIA GPU; call it until it says "done"
    make gpu GPU_OPTIONS="--networks resnet50 --batches 1,32 --limit 300"
    python benchmarks/gpu.py --dry-run            # the commands, nothing else

It calls nm2trt's own commands one after the other, each with its log. No step is started after --limit seconds; a
second call goes on where the first one stopped. Weights are random, from a seed, and pruned by magnitude: good for
timing, since kernels do not look at values, and for nothing else. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from a100_networks import NETWORKS, Network, write_weights

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDED = (
    "torch",
    "numpy",
    "scipy",
    "click",
    "rich",
    "pydantic",
    "safetensors",
    "onnx",
    "onnx_ir",
    "ml_dtypes",
    "matplotlib",
    "jinja2",
    "accelerate",
    "tomli_w",
    "torchvision",
    "sklearn",
)
FOR_TESTS = ("pytest", "hypothesis")
TESTS = ("tests/training", "tests/torch_sparse", "tests/gpu_benchmark")
ARCHIVED = (".json", ".html", ".log", ".txt", ".png", ".xml")
EXIT_DEPENDENCY = 4


@dataclass(frozen=True)
class Step:
    """One command with what it writes."""

    name: str
    arguments: tuple[str, ...]
    output: Path
    """When this is there, the step is done."""
    usual_s: float
    """How long it takes on a fast GPU; decides whether it may still start."""
    before: Callable[[], None] | None = None

    @property
    def line(self) -> str:
        """For people."""
        return shlex.join(self.arguments)


def nm2trt(*arguments: object) -> tuple[str, ...]:
    """The command line of the package that is laid out in site/."""
    return (sys.executable, "-m", "nm2trt", *map(str, arguments))


@dataclass(frozen=True)
class Plan:
    """Which steps, in which order: the most telling ones first."""

    folder: Path
    networks: tuple[str, ...]
    batches: str
    compiled_batches: str
    benchmark_s: float
    duration_s: float
    rounds: int
    parts: tuple[str, ...]

    def steps(self) -> Iterator[Step]:
        """All of them."""
        makers = {
            "benchmark": self._benchmark,
            "step": self._training_step,
            "profile": self._profiles,
            "tests": self._tests,
            "compiled": self._compiled,
        }
        for part in self.parts:
            yield from makers[part]()

    def _benchmark(self) -> Iterator[Step]:
        output = self.folder / "gpu.json"
        arguments = nm2trt("benchmark-gpu", "-o", output, "--duration", f"{self.benchmark_s:g}")
        yield Step("benchmark-gpu", arguments, output, self.benchmark_s + 30)

    def _training_step(self) -> Iterator[Step]:
        output = self.folder / "train-step.json"
        script = REPOSITORY / "benchmarks" / "train_step_gpu.py"
        arguments = (sys.executable, str(script), "--rounds", str(self.rounds), "-o", str(output))
        yield Step("train-step", arguments, output, 90)

    def _tests(self) -> Iterator[Step]:
        output = self.folder / "junit.xml"
        folders = [str(REPOSITORY / one) for one in TESTS]
        arguments = (
            sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors",
            "--durations=8", "-p", "no:cacheprovider", f"--rootdir={REPOSITORY}",
            "-c", str(REPOSITORY / "pyproject.toml"), f"--junitxml={output}", *folders,
        )  # fmt: skip
        yield Step("tests", arguments, output, 120)

    def _profiles(self) -> Iterator[Step]:
        count = 2 * len(self.batches.split(","))
        for name in self.networks:
            network = NETWORKS[name]
            yield self._prune(network)
            yield self._profile(network, "", "eager,cuda-graph", self.batches, count * (2 * self.duration_s + 2) + 20)

    def _compiled(self) -> Iterator[Step]:
        for name in self.networks:
            yield self._prune(NETWORKS[name])
            yield self._profile(NETWORKS[name], "-compiled", "compiled", self.compiled_batches, 90)

    def _weights(self, network: Network, variant: str) -> Path:
        return self.folder / "networks" / network.name / variant / network.weights_file

    def _prune(self, network: Network) -> Step:
        dense, sparse = self._weights(network, "dense"), self._weights(network, "sparse")
        paths = (dense.parent, sparse.parent) if network.is_folder else (dense, sparse)
        arguments = nm2trt("prune", paths[0], "-o", paths[1])

        def prepare() -> None:
            write_weights(network, dense)
            paths[1].parent.mkdir(parents=True, exist_ok=True)

        return Step(f"{network.name}-prune", arguments, sparse, 20, prepare)

    def _profile(self, network: Network, suffix: str, modes: str, batches: str, usual_s: float) -> Step:
        sparse, dense = self._weights(network, "sparse"), self._weights(network, "dense")
        report = self.folder / f"{network.name}{suffix}"
        arguments = nm2trt(
            "profile", sparse.parent if network.is_folder else sparse, "--backend", "torch-sparse",
            "--dense", dense.parent if network.is_folder else dense, *torch_options(network), "--mode", modes,
            "--batch", batches, "--duration", f"{self.duration_s:g}", "-o", report,
        )  # fmt: skip
        return Step(f"{network.name}{suffix}-profile", arguments, report / "report.json", usual_s)


def torch_options(network: Network) -> tuple[str, ...]:
    """How the network is named; tokens go without a mask, which would be all ones."""
    options = list(network.export_options)
    while "attention_mask=128:int64" in options:
        at = options.index("attention_mask=128:int64")
        del options[at - 1 : at + 1]
    return tuple(options)


def missing_modules() -> tuple[list[str], list[str]]:
    """Modules that the measurements lack, and those that only the tests lack."""
    needed, tests = (
        [name for name in names if importlib.util.find_spec(name) is None] for names in (NEEDED, FOR_TESTS)
    )
    return needed, tests


def run(step: Step, folder: Path, *, timeout_s: float) -> dict[str, object]:
    """Run one step with its log; a failure is noted and the rest goes on."""
    if step.output.exists():
        return {"step": step.name, "exit": 0, "seconds": 0.0, "note": "was there"}
    if step.before is not None:
        step.before()
    log = folder / "logs" / f"{step.name}.log"
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                step.arguments, stdout=file, stderr=subprocess.STDOUT, cwd=folder / "site", env=environment(folder),
                timeout=timeout_s, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = 124
    seconds = round(time.monotonic() - started, 1)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    note = lines[-1][:300] if lines else ""
    print(f"{step.name:26} exit {code:3} {seconds:7.1f} s  {note}", flush=True)
    return {"step": step.name, "exit": code, "seconds": seconds, "note": note}


def environment(folder: Path) -> dict[str, str]:
    """The package's own layout first; offline, since networks are made from seeds."""
    site = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(site), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def archive(folder: Path) -> Path:
    """Pack everything but weights and the package itself."""
    target = folder.with_suffix(".tar.gz")
    with tarfile.open(target, "w:gz") as packed:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            if path.is_file() and path.suffix in ARCHIVED and inside[0] not in ("networks", "site"):
                packed.add(path, arcname=f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return target


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    parser.add_argument("--networks", default="resnet50,vit_b_16,bert", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--compiled-batches", default="32")
    parser.add_argument("--benchmark", type=float, default=200.0, help="seconds of benchmark-gpu")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds for each batch size and mode")
    parser.add_argument("--rounds", type=int, default=40, help="of the training step")
    parser.add_argument("--parts", default="tests,step,benchmark,profile,compiled")
    parser.add_argument("--limit", type=float, default=520.0, help="seconds after which no step is started")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.networks.split(",") if name not in NETWORKS]
    if unknown:
        parser.error(f"unknown networks: {', '.join(unknown)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run what is left to do."""
    options = parse(arguments)
    folder = options.output.resolve()
    plan = Plan(
        folder=folder,
        networks=tuple(options.networks.split(",")),
        batches=options.batches,
        compiled_batches=options.compiled_batches,
        benchmark_s=options.benchmark,
        duration_s=options.duration,
        rounds=options.rounds,
        parts=tuple(options.parts.split(",")),
    )
    if options.dry_run:
        for step in plan.steps():
            print(step.line)
        return 0
    needed, for_tests = missing_modules()
    if needed:
        print(f"missing: {', '.join(needed)}; pip install them (wheels will do), nothing else is needed")
        return EXIT_DEPENDENCY
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    done: list[dict[str, object]] = []
    postponed = []
    for step in plan.steps():
        left_s = options.limit - (time.monotonic() - started)
        if step.name == "tests" and for_tests:
            print(f"tests are left out: {', '.join(for_tests)} missing")
            continue
        if not step.output.exists() and left_s < min(step.usual_s, options.limit / 2):
            postponed.append(step.name)
            continue
        done.append(run(step, folder, timeout_s=max(left_s, 30)))
        (folder / "steps.json").write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    packed = archive(folder)
    failed = [str(one["step"]) for one in done if one["exit"] != 0]
    if postponed:
        print(f"{len(postponed)} steps are left for the next call: {', '.join(postponed)}; call again")
    else:
        print(f"done; {packed.name}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
