"""Export networks that were pruned 2:4, check them, compile them for SM80; and what the checks cost.

    python benchmarks/export.py [--only resnet18 "bert, 4 layers" cost] [--missing] [--builder auto] [--repeats 3]
                                [--write docs/export.md]

Random weights (BatchNorm statistics and zero-initialized heads drawn, too), pruned by nm2trt's own `prune`, exported
by `nm2trt export` in fp32 and fp16 with every check. Prints Markdown: nodes, seconds, error, eligible layers, size of
the plan. Then ("cost"), for resnet50 and in turn in one process: loading a checkpoint and a bare torch.onnx.export,
beside `nm2trt export` of the same checkpoint with all checks and no engine. Goal: below 1.5.
Each network has a process of its own. --write puts both tables into a page, between its markers, after each network;
a later run with --missing or --only goes on from there.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nm2trt.artifacts import BuildDocument
from nm2trt.models import build_model
from nm2trt.pattern import NMPattern
from nm2trt.pipelines.export import export_network, failures
from nm2trt.pipelines.export_config import ExportConfig
from nm2trt.prune import Request, prune_path

PRECISIONS = ("fp32", "fp16")
COST = "cost"
TITLES = (
    "network", "precision", "nodes", "export and checks", "of it CPU", "largest error", "same argmax",
    "eligible / layers", "plan, SM80", "verdict",
)  # fmt: skip
COST_TITLES = ("resnet50, load and export", "CPU", "wall", "CPU against bare", "wall against bare")
BEGIN, END = "<!-- benchmarks/export.py -->", "<!-- end -->"
TOKENS = ("--input", "input_ids=128:int64", "attention_mask=128:int64")


def fpn(input_shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001
    """RetinaNet's and FCOS's backbone: resnet50 with a feature pyramid and two more levels, five outputs."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    return resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )


def bert(input_shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001
    """BERT-base's shapes with 4 of its 12 layers."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_hidden_layers=4, attn_implementation="eager"))


IMAGENET, DIGITS = {"input_shape": "3,224,224"}, {"input_shape": "1,8,8"}
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "resnet18": ("resnet18", IMAGENET),
    "resnet50": ("resnet50", IMAGENET),
    "mobilenet_v3_small": ("mobilenet_v3_small", IMAGENET),
    "efficientnet_b0": ("efficientnet_b0", IMAGENET),
    "vit_b_16": ("vit_b_16", IMAGENET),
    "retinanet pyramid": ("export:fpn", {"input_shape": "3,256,256"}),
    "bert, 4 layers": ("export:bert", {"inputs": TOKENS[1:]}),
    "mlp": ("mlp", DIGITS),
    "resnet8": ("resnet8", DIGITS),
    "resnet20": ("resnet20", DIGITS),
    "encoder-small": ("encoder-small", {"input_shape": "34,29", "classes": 40}),
}
"""Name -> what `--model` takes, and what else the export has to be told."""


def network(name: str) -> nn.Module:
    """Build one with every tensor far from zero."""
    model, about = NETWORKS[name]
    torch.manual_seed(0)
    shape = tuple(int(size) for size in str(about.get("input_shape", "1")).split(","))
    own = {"export:fpn": fpn, "export:bert": bert}
    module = own[model](shape) if model in own else build_model(model, shape, 1000 if len(shape) == 3 else 40)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.uniform_(-0.2, 0.2)
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
    return module


def pruned(name: str, folder: Path) -> Path:
    """Checkpoint of a network, 2:4 wherever that is possible."""
    dense, sparse = folder / "dense.safetensors", folder / f"{NETWORKS[name][0].replace(':', '-')}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in network(name).state_dict().items()}, dense)
    # A checkpoint does not tell a table of positions from a matrix; nothing multiplies by encoder-small's.
    prune_path(dense, sparse, Request(pattern=NMPattern.parse("2:4"), exclude=("position",)), force=True)
    return sparse


def row(name: str, precision: str, builder: str) -> str:
    """Export once; a line of the table."""
    model, about = NETWORKS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = pruned(name, folder)
        started, wall = time.process_time(), time.perf_counter()
        config = ExportConfig.model_validate(
            {"precision": precision, "builder": builder, "source": {"model": model, **about}}
        )
        build = export_network(checkpoint, folder / "b", config)
        cpu_s, wall_s = time.process_time() - started, time.perf_counter() - wall
        nodes = len(onnx.load(folder / "b" / "model.onnx", load_external_data=False).graph.node)
        for line in failures(build):
            print(f"{name} {precision}: {line}", file=sys.stderr)
    return line_of(name, precision, build, nodes, cpu_s, wall_s)


def line_of(name: str, precision: str, build: BuildDocument, nodes: int, cpu_s: float, wall_s: float) -> str:
    assert build.numerics is not None
    layers = [layer for layer in build.pattern["layers"] if layer["verdict"] != "not-prunable"]
    eligible = sum(layer["tensorrt"] == "eligible" for layer in layers)
    plan = next((engine for engine in build.engines if engine.variant == "sparse"), None)
    engine = "-" if plan is None else "failed" if plan.size_bytes is None else f"{plan.size_bytes / 1e6:.1f} MB"
    built_s = sum(one.seconds for one in build.engines)
    cells = (
        name,
        precision,
        str(nodes),
        f"{wall_s - built_s:.1f} s",
        f"{cpu_s:.1f} s",
        f"{build.numerics.max_rel_error:.1e}",
        f"{build.numerics.argmax_agreement:.1%}",
        f"{eligible} / {len(layers)}",
        engine,
        build.verdict,
    )
    return f"| {' | '.join(cells)} |"


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def bare(checkpoint: Path, output: Path) -> None:
    """What a user writes by hand."""
    import torchvision

    module = torchvision.models.resnet50()
    module.load_state_dict(load_file(checkpoint))
    torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 3, 224, 224),),
        output,
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        opset_version=20,
        verbose=False,
    )


def cost(repeats: int) -> list[str]:
    """Bare export and ours in turn, after one of each that does not count."""
    found: dict[str, list[tuple[float, float]]] = {"bare torch.onnx.export": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = pruned("resnet50", folder)
        for turn in range(repeats + 1):
            seconds = {"bare torch.onnx.export": timed(lambda: bare(checkpoint, folder / "bare.onnx"))}
            for precision in PRECISIONS:
                about = {"model": "resnet50", **IMAGENET}
                output = folder / f"{turn}-{precision}"
                seconds[f"nm2trt export, {precision}, all checks"] = timed(
                    lambda p=precision, o=output, a=about: export_network(
                        checkpoint,
                        o,
                        ExportConfig.model_validate({"precision": p, "builder": "none", "source": a}),
                    )
                )
            for name, pair in seconds.items() if turn else ():
                found.setdefault(name, []).append(pair)
    base = found["bare torch.onnx.export"]
    lines = []
    for name, pairs in found.items():
        cpu_ratio, wall_ratio = (
            statistics.median(ours[clock] / theirs[clock] for ours, theirs in zip(pairs, base, strict=True))
            for clock in (0, 1)
        )
        cpu_s, wall_s = (statistics.median(values) for values in zip(*pairs, strict=True))
        lines.append(f"| {name} | {cpu_s:.1f} s | {wall_s:.1f} s | {cpu_ratio:.2f} | {wall_ratio:.2f} |")
    return lines


def in_own_process(job: str, arguments: argparse.Namespace) -> list[str]:
    """Rows of one network, or of the comparison; one that is killed is a row, and the others still run."""
    command = [sys.executable, __file__, "--one", job, "--builder", arguments.builder]
    command += ["--repeats", str(arguments.repeats)]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("| "):
                rows.append(line.rstrip())
                print(rows[-1], flush=True)
    if process.returncode:
        code = process.returncode
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        columns = len(COST_TITLES if job == COST else TITLES)
        rows.append(f"| {job} | {ended} |" + " - |" * (columns - 2))
        print(rows[-1], flush=True)
    return rows


class Page:
    """The two tables, which a page may hold already: a run replaces the rows that it measured and keeps the others."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: dict[str, list[str]] = {}
        if path is None:
            return
        found = path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
        job = ""
        for line in found.splitlines():
            first = line.strip("| ").partition(" |")[0]
            job = COST if first == COST_TITLES[0] else first if first in NETWORKS else job
            if line.startswith("| ") and first not in (TITLES[0], COST_TITLES[0]):
                self.rows.setdefault(job, []).append(line)

    def complete(self, job: str) -> bool:
        """Whether nothing is missing of a network."""
        return len(self.rows.get(job, ())) == len(PRECISIONS) and all(" s | " in row for row in self.rows[job])

    def lines(self) -> list[str]:
        networks = [row for name in NETWORKS for row in self.rows.get(name, ())]
        return [*head(TITLES, left=2), *networks, "", *head(COST_TITLES, left=1), *self.rows.get(COST, ())]

    def write(self) -> None:
        if self._path is None:
            return
        before, _, rest = self._path.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        text = f"{before}{BEGIN}\n\n" + "\n".join(self.lines()) + f"\n\n{END}{after}"
        self._path.write_text(text, encoding="utf-8")


def head(titles: tuple[str, ...], *, left: int) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * left + "--:|" * (len(titles) - left)]


def one(job: str, arguments: argparse.Namespace) -> None:
    """Measure in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if job == COST:
        print("\n".join(cost(arguments.repeats)), flush=True)
        return
    for precision in PRECISIONS:
        print(row(job, precision, arguments.builder), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = [*NETWORKS, COST]
    parser.add_argument("--only", nargs="*", choices=jobs, default=jobs, metavar="NAME", help=", ".join(jobs))
    parser.add_argument("--missing", action="store_true", help="leave out what the page of --write holds already")
    parser.add_argument("--builder", default="auto")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison with a bare export")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--one", choices=jobs, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments)
        return
    page = Page(arguments.write)
    for job in arguments.only:
        if not (arguments.missing and page.complete(job)):
            page.rows[job] = in_own_process(job, arguments)
            page.write()
    print("\n" + "\n".join(page.lines()))


if __name__ == "__main__":
    main()
