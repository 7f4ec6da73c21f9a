"""Everything that a GPU can tell, unattended: networks x precisions x batches, dense against sparse, into one archive.

    make a100                                                      # on a machine with a GPU and TensorRT
    python benchmarks/a100.py --rehearse                           # the same way at small size, in minutes
    python benchmarks/a100.py --dry-run                            # the commands, nothing else
    python benchmarks/a100.py --networks tiny --backend onnxruntime --batches 1,2 --duration 1 --rebuilds 1

It only calls nm2trt's own commands, one after the other, each with its log. A step that fails is noted and the rest
goes on; a second call goes on where the first was stopped. Weights are random (seeded) and pruned by magnitude: good
for timing, since kernels do not look at values, and for nothing else. See docs/a100.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from a100_networks import NETWORKS, SMALL, Network, write_samples, write_weights

LIMIT_S = 4 * 3600
DEFAULT_BATCHES = "1,8,32,128"
INT8_TOLERANCE = "0.2"
"""Of the largest output: with random weights one rounding step more or less moves whole logits, and says nothing."""
INT8_OUT = "int8-out"
"""INT8 with a QuantizeLinear behind each sparse layer: TensorRT takes sparse INT8 kernels where the output is INT8."""
ARCHIVED = (".json", ".html", ".log", ".txt", ".png")
"""Plans, weights and ONNX files stay: they are large, and the archive names their sha256."""


@dataclass(frozen=True)
class Step:
    """One command with what it writes."""

    name: str
    arguments: tuple[str, ...]
    output: Path
    """What it writes: when this is there, the step is done."""

    @property
    def line(self) -> str:
        return shlex.join(("nm2trt", *self.arguments))


@dataclass(frozen=True)
class Plan:
    """Which commands, in which order."""

    folder: Path
    backend: str
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    duration: float
    rebuilds: int
    streams: int

    def steps(self, network: Network) -> Iterator[Step]:
        yield self._prune(network)
        for variant in ("dense", "sparse"):
            yield self._export(network, variant)
        for precision in self.precisions:
            if precision != "fp16":
                for variant in self.variants(precision):
                    yield self._calibrate(network, variant, precision)
            for batch in self.batches:
                if self.backend != "onnxruntime":
                    yield self._build(network, precision, batch)
                yield self._profile(network, precision, batch)

    def variants(self, precision: str) -> tuple[str, ...]:
        """Which weights are compared; `int8-out` puts Q/DQ where only the sparse network has its pattern."""
        return ("sparse",) if precision == INT8_OUT else ("dense", "sparse")

    def weights(self, network: Network, variant: str) -> Path:
        return self.folder / "networks" / network.name / variant / network.weights_file

    def samples(self, network: Network) -> Path:
        return self.folder / "networks" / network.name / "samples.npz"

    def onnx(self, network: Network, variant: str, precision: str) -> Path:
        base = self.folder / "onnx"
        if precision != "fp16":
            return base / f"{network.name}-{variant}-{precision}.onnx"
        return base / f"{network.name}-{variant}-fp16" / "model.onnx"

    def _prune(self, network: Network) -> Step:
        source, output = self.weights(network, "dense"), self.weights(network, "sparse")
        if network.is_folder:
            source, output = source.parent, output.parent
        return Step(f"{network.name}-prune", ("prune", str(source), "-o", str(output)), output)

    def _export(self, network: Network, variant: str) -> Step:
        source = self.weights(network, variant)
        output = self.onnx(network, variant, "fp16").parent
        arguments = ("export", str(source.parent if network.is_folder else source), *network.export_options)
        arguments += ("--samples", str(self.samples(network)), "--precision", "fp16", "--builder", "none")
        return Step(f"{network.name}-{variant}-export", (*arguments, "-o", str(output)), output)

    def _calibrate(self, network: Network, variant: str, precision: str) -> Step:
        output = self.onnx(network, variant, precision)
        arguments = ("calibrate", str(self.onnx(network, variant, "fp16")), "--data", str(self.samples(network)))
        # Dense and sparse are compared on one graph, so both take the placement that needs no pattern.
        placement = "sparse" if precision == INT8_OUT else "default"
        arguments += ("--method", "minmax", "--placement", placement, "--builder", "none", "-o", str(output))
        return Step(f"{network.name}-{variant}-{precision}-calibrate", arguments, output)

    def _build(self, network: Network, precision: str, batch: int) -> Step:
        output = self.folder / "builds" / f"{network.name}-{precision}-b{batch}"
        arguments = ("export", str(self.onnx(network, "sparse", precision)))
        if "dense" in self.variants(precision):
            arguments += ("--dense", str(self.onnx(network, "dense", precision)))
        arguments += (
            "--batch",
            f"{batch}:{batch}:{batch}",
            "--builder",
            self.backend,
            "--rebuilds",
            str(self.rebuilds),
            *(("--tolerance", INT8_TOLERANCE) if precision != "fp16" else ()),
            "-o",
            str(output),
        )
        return Step(f"{network.name}-{precision}-b{batch}-build", arguments, output)

    def _profile(self, network: Network, precision: str, batch: int) -> Step:
        output = self.folder / "reports" / f"{network.name}-{precision}-b{batch}"
        if self.backend == "onnxruntime":
            arguments = ("profile", str(self.onnx(network, "sparse", precision)))
            if "dense" in self.variants(precision):
                arguments += ("--dense", str(self.onnx(network, "dense", precision)))
        else:
            arguments = ("profile", str(self.folder / "builds" / output.name))
        arguments += ("--backend", self.backend, "--batch", str(batch), "--duration", f"{self.duration:g}")
        arguments += ("--rebuilds", str(self.rebuilds), "--streams", str(self.streams), "-o", str(output))
        return Step(f"{network.name}-{precision}-b{batch}-profile", arguments, output)


class Ledger:
    """How each step ended, in steps.json, so that a second call repeats what failed and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends: dict[str, dict[str, object]] = {}
        if path.is_file():
            self._ends = {str(one["step"]): one for one in json.loads(path.read_text(encoding="utf-8"))}

    def finished(self, step: Step) -> dict[str, object] | None:
        """How the step ended, where it left its output: well, or with a failed check, which would only fail again."""
        end = self._ends.get(step.name)
        if end is None or end["line"] != step.line or end["exit"] not in (0, 1) or not step.output.exists():
            return None
        return end

    def note(self, end: dict[str, object]) -> None:
        """Write down how a step ended; the file is replaced whole."""
        self._ends[str(end["step"])] = end
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(list(self._ends.values()), indent=2) + "\n", encoding="utf-8")
        partial.replace(self._path)


def run(step: Step, logs: Path, ledger: Ledger) -> dict[str, object]:
    """Run one step, unless it ended before; exit code 1 (a failed check) still leaves its output."""
    before = ledger.finished(step)
    if before is not None:
        print(f"  {step.name}: there already, exit {before['exit']}")
        return before
    step.output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    log = logs / f"{step.name}.log"
    # What a step left that failed or was killed is its own; nm2trt replaces only what it wrote.
    again = ("--force",) if step.output.exists() else ()
    with log.open("w", encoding="utf-8") as file:
        file.write(f"$ {step.line}\n")
        file.flush()
        try:
            command = [sys.executable, "-m", "nm2trt", *step.arguments, *again]
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False, env=_environment()
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    seconds = time.monotonic() - started
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1]
    print(f"  {step.name}: exit {code}, {seconds:.0f} s{'' if code == 0 else ': ' + last[:160]}", flush=True)
    end = {"step": step.name, "line": step.line, "exit": code, "seconds": round(seconds, 1), "note": last[:400]}
    ledger.note(end)
    return end


def _environment() -> dict[str, str]:
    """With this folder in the path: the small networks are functions of a100_networks."""
    folders = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def describe_machine(folder: Path) -> None:
    """What the archive must say of the machine, beside what every report says."""
    from nm2trt.artifacts.host import redact_machine

    for name, command in (
        ("nvidia-smi.txt", ["nvidia-smi", "-q"]),
        ("doctor.json", [sys.executable, "-m", "nm2trt", "doctor", "--json"]),
        ("pip-freeze.txt", [sys.executable, "-m", "pip", "freeze"]),
    ):
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
            found = redact_machine(said)
        except (OSError, subprocess.TimeoutExpired) as error:
            found = f"{error}\n"
        (folder / name).write_text(found, encoding="utf-8")


def summarize(folder: Path, steps: list[dict[str, object]]) -> None:
    """Write summary.json and index.html: a row for each network, precision and batch."""
    from nm2trt.artifacts import ReportDocument
    from nm2trt.report import KeyFigure, Section, Table, render_page

    rows = []
    for path in sorted((folder / "reports").glob("*/report.json")):
        report = ReportDocument.read(path.parent)
        for batch in report.batches:
            layers = report.layers
            rows.append(
                {
                    "report": path.parent.name,
                    "batch": batch.batch,
                    "baseline": batch.baseline,
                    "ratio": batch.ratio.value,
                    "low": batch.ratio.low,
                    "high": batch.ratio.high if batch.ratio.high < float("inf") else None,
                    "finding": batch.finding,
                    "noise": batch.noise_floor if batch.noise_floor < float("inf") else None,
                    "chosen": layers.chosen if layers else None,
                    "weighted": layers.weighted if layers else None,
                    "net": layers.net.value if layers and layers.net else None,
                    "sentence": batch.sentence,
                }
            )
    failed = [one for one in steps if one["exit"] != 0]
    summary = {"schema": "nm2trt.a100/1", "rows": rows, "steps": steps, "failed": len(failed)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    table = Table(
        ("report", "batch", "dense / sparse", "sparse kernels", "finding"),
        tuple(
            (
                str(row["report"]),
                str(row["batch"]),
                f"{row['ratio']:.3f}x [{row['low']:.3f}, {row['high'] or float('inf'):.3f}]",
                "not seen" if row["chosen"] is None else f"{row['chosen']} of {row['weighted']}",
                str(row["sentence"]),
            )
            for row in rows
        ),
        numeric=frozenset({1, 2}),
        code=frozenset({0}),
    )
    steps_table = Table(
        ("step", "exit", "seconds", "last line"),
        tuple((str(one["step"]), str(one["exit"]), str(one["seconds"]), str(one["note"])) for one in steps),
        numeric=frozenset({1, 2}),
    )
    figures = [KeyFigure(str(len(rows)), "measurements"), KeyFigure(str(len(failed)), "steps that did not end well")]
    sections = [Section("Measurements", (table,)), Section("Steps", (steps_table,), folded=True)]
    page = render_page("Dense against sparse", "random weights, pruned by magnitude; for timing only", sections,
                       key_figures=figures)  # fmt: skip
    (folder / "index.html").write_text(page, encoding="utf-8")


def archive(folder: Path) -> Path:
    """Pack everything but weights, ONNX files and plans."""
    target = folder.with_suffix(".tar.gz")
    with tarfile.open(target, "w:gz") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in ARCHIVED and "networks" not in path.relative_to(folder).parts:
                packed.add(path, arcname=f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return target


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/a100"))
    parser.add_argument("--networks", default="resnet50,vit_b_16,bert", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument(
        "--rehearse", action="store_true", help="small networks, batches 1 and 2, four seconds each: does it run here?"
    )
    parser.add_argument("--precisions", default=f"fp16,int8,{INT8_OUT}")
    parser.add_argument("--batches", default=DEFAULT_BATCHES)
    parser.add_argument("--backend", choices=("tensorrt", "onnxruntime"), default="tensorrt")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds for each batch and build")
    parser.add_argument("--rebuilds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(arguments)
    if options.rehearse:
        options.networks, options.duration = ",".join(SMALL), 4.0
        options.batches = "1,2" if options.batches == DEFAULT_BATCHES else options.batches
        options.rebuilds, options.streams = 1, 1
    options.networks = options.networks.split(",")
    unknown = [name for name in options.networks if name not in NETWORKS]
    wrong = [name for name in options.precisions.split(",") if name not in ("fp16", "int8", INT8_OUT)]
    if unknown or wrong:
        parser.error(f"unknown: {', '.join(unknown + wrong)}")
    if not all(size.isdigit() and int(size) > 0 for size in options.batches.split(",")):
        parser.error("--batches: positive whole numbers, with commas")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan = Plan(
        folder=options.output,
        backend=options.backend,
        precisions=tuple(options.precisions.split(",")),
        batches=tuple(int(size) for size in options.batches.split(",")),
        duration=options.duration,
        rebuilds=options.rebuilds,
        streams=options.streams,
    )
    if options.dry_run:
        for name in options.networks:
            for step in plan.steps(NETWORKS[name]):
                print(step.line)
        return 0
    logs = plan.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    describe_machine(plan.folder)
    done: list[dict[str, object]] = []
    ledger = Ledger(plan.folder / "steps.json")
    for name in options.networks:
        network = NETWORKS[name]
        print(name, flush=True)
        write_weights(network, plan.weights(network, "dense"))
        write_samples(network, plan.samples(network))
        for step in plan.steps(network):
            done.append(run(step, logs, ledger))
            summarize(plan.folder, done)
    packed = archive(plan.folder)
    failed = sum(one["exit"] != 0 for one in done)
    print(f"{len(done) - failed} of {len(done)} steps ended well; {packed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
