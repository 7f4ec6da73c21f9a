"""One all-Linear network pruned to 2:4 by nm2trt, NVIDIA's Model Optimizer and llm-compressor, side by side.

    python benchmarks/prune.py --peers

A multilayer perceptron is trained here on Fashion-MNIST. Every tool gets the same calibration samples and its own
defaults, runs in a process of its own with one thread, in turns, and leaves the classifier dense. Printed: CPU seconds
of pruning without imports, memory that it took on top of the imported libraries, and what became of the outputs on
held-out samples. `make peers` installs the others; what is missing is said.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts.files import write_atomic

Array = NDArray[Any]

SIZES = (784, 1024, 1024, 1024, 10)
CALIBRATION, HELD_OUT = 2048, 2000
STEPS, BATCH = 300, 128
ROUNDS = 2
FOLDER = "NM2TRT_PRUNE_PEERS"
"""Environment variable: where network and samples lie."""
TABLE = "table.md"
_MISSING = 77


def read_samples() -> Any:
    """The samples as `--data` takes them: all of the training part are calibration samples."""
    from nm2trt.data import DataSet

    found = np.load(Path(os.environ[FOLDER]) / "samples.npz")
    return DataSet.from_arrays(
        name="fashion-mnist",
        source="fashion-mnist",
        classes=SIZES[-1],
        train_x_NX=found["train_x"],
        train_y_N=found["train_y"],
        test_x_NX=found["test_x"],
        test_y_N=found["test_y"],
    )


def make_network() -> Any:
    """Linear layers with ReLU between them, the last one named `head`."""
    from torch import nn

    layers: list[tuple[str, nn.Module]] = []
    for number, (before, after) in enumerate(pairwise(SIZES)):
        last = number == len(SIZES) - 2
        layers.append(("head" if last else f"linear{number}", nn.Linear(before, after)))
        layers += [] if last else [(f"relu{number}", nn.ReLU())]
    return nn.Sequential(OrderedDict(layers))


def prepare(folder: Path) -> None:
    """Draw the samples, train the dense network, and write both, unless that is done."""
    if (folder / "network.onnx").is_file():
        return
    import torch

    from nm2trt.data import load_data

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data, network = load_data("fashion-mnist"), make_network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(STEPS):
        x, y = data.train.fetch(range(CALIBRATION + step * BATCH, CALIBRATION + (step + 1) * BATCH), 0)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x.flatten(1)), y).backward()
        optimizer.step()
    arrays = {}
    for part, samples, count in (("train", data.train, CALIBRATION), ("test", data.test, HELD_OUT)):
        x, y = samples.fetch(range(count), 0)
        arrays |= {f"{part}_x": x.flatten(1).numpy(), f"{part}_y": y.numpy()}
    np.savez(folder / "samples.npz", **arrays)
    torch.save(network.state_dict(), folder / "network.pt")
    shape = {"x": {0: torch.export.Dim("n")}}
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            network.eval(), (torch.zeros(2, SIZES[0]),), folder / "network.onnx", input_names=["x"], dynamo=True,
            dynamic_shapes=tuple(shape.values()), external_data=False,
        )  # fmt: skip


def load_network(folder: Path) -> Any:
    """The dense network in PyTorch."""
    import torch

    network = make_network()
    network.load_state_dict(torch.load(folder / "network.pt"))
    return network.eval()


def weights_of(network: Any) -> dict[str, Array]:
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def load_nm2trt(method: str) -> Callable[[Path], dict[str, Array]]:
    import onnxruntime  # noqa: F401 -- imports are not timed
    from onnx import load, numpy_helper

    from nm2trt import DataConfig, PruneConfig, prune_file
    from nm2trt.calibration import agreement, sources  # noqa: F401
    from nm2trt.prune.calibrated import onnx_network  # noqa: F401

    def work(folder: Path) -> dict[str, Array]:
        out = folder / f"{os.getpid()}.onnx"
        # The comparison with the dense network that every call ends with takes few samples, as the others do none.
        data = DataConfig(data="prune_peers:read_samples", method=method, samples=CALIBRATION, held_out=1)  # type: ignore[arg-type]
        prune_file(folder / "network.onnx", out, PruneConfig(exclude=("head.weight",), data=data))
        found = {tensor.name: numpy_helper.to_array(tensor) for tensor in load(out).graph.initializer}
        for file in folder.glob(f"{os.getpid()}.*"):
            file.unlink()
        return found

    return work


def load_modelopt(_: str) -> Callable[[Path], dict[str, Array]]:
    sparsity = importlib.import_module("modelopt.torch.sparsity")

    def work(folder: Path) -> dict[str, Array]:
        network = load_network(folder)
        config = {
            "data_loader": batches(folder),
            "collect_func": lambda x: x,
            "device": "cpu",
            "calib_size": CALIBRATION,
        }
        rules = {"nn.Linear": {"*": {}, "*head*": None}}
        network = sparsity.sparsify(network, [("sparsegpt", rules)], config=config)
        return weights_of(sparsity.export(network))

    return work


def load_llmcompressor(_: str) -> Callable[[Path], dict[str, Array]]:
    import torch

    oneshot = importlib.import_module("llmcompressor").oneshot
    modifier = importlib.import_module("llmcompressor.modifiers.pruning").SparseGPTModifier
    from transformers import PretrainedConfig, PreTrainedModel

    class Wrapped(PreTrainedModel):  # type: ignore[misc]
        config_class = PretrainedConfig
        main_input_name = "x"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.network = make_network()
            self.post_init()

        def _init_weights(self, _: Any) -> None:
            pass

        def forward(self, x: Any) -> Any:
            return self.network(x)

    def work(folder: Path) -> dict[str, Array]:
        # It looks for the configuration of a known architecture where the model says that it came from.
        known = folder / "known"
        known.mkdir(exist_ok=True)
        (known / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        model = Wrapped(PretrainedConfig(name_or_path=str(known)))
        model.network.load_state_dict(load_network(folder).state_dict())
        loader = torch.utils.data.DataLoader([{"x": x} for x in torch.cat(batches(folder))], batch_size=64)
        recipe = modifier(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*head"])
        oneshot(
            model=model.eval(), dataset=loader, recipe=recipe, pipeline="sequential", sequential_targets=["Linear"],
            num_calibration_samples=CALIBRATION, processor=object(),
        )  # fmt: skip
        return weights_of(model.network)

    return work


def batches(folder: Path) -> list[Any]:
    """The calibration samples, 64 at a time."""
    import torch

    return list(torch.from_numpy(np.load(folder / "samples.npz")["train_x"]).split(64))


TOOLS = {
    "nm2trt obs": load_nm2trt,
    "nm2trt wanda": load_nm2trt,
    "nm2trt magnitude": load_nm2trt,
    "Model Optimizer sparsegpt": load_modelopt,
    "llm-compressor SparseGPT": load_llmcompressor,
}


def child(tool: str, folder: Path) -> int:
    """Prune with one tool and print what it took and what it left."""
    try:
        work = TOOLS[tool](tool.rpartition(" ")[2])
    except ImportError as error:
        print(error, file=sys.stderr)
        return _MISSING
    before_kib = read_peak_kib()
    started = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        weights = work(folder)
    seconds = time.process_time() - started
    taken_kib = read_peak_kib() - before_kib
    print(json.dumps({"seconds": seconds, "mib": taken_kib / 1024, **judge(weights, folder)}))
    return 0


def read_peak_kib() -> int:
    """Most memory of this program; getrusage's figure would begin with that of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def judge(weights: dict[str, Array], folder: Path) -> dict[str, float]:
    """Held-out samples through both networks in float64, and how many groups of four hold more than two weights."""
    samples, dense = np.load(folder / "samples.npz"), weights_of(load_network(folder))
    wanted, found = (run(values, samples["test_x"]) for values in (dense, weights))
    pruned = [values for name, values in weights.items() if name.startswith("linear") and values.ndim == 2]
    bad = sum(int((np.count_nonzero(values.reshape(-1, 4), axis=1) > 2).sum()) for values in pruned)
    changed = sum(
        int(np.count_nonzero((values != dense[name]) & (values != 0)))
        for name, values in weights.items()
        if name.startswith("linear") and values.ndim == 2
    )
    return {
        "error": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
        "accuracy": float((found.argmax(1) == samples["test_y"]).mean()),
        "dense_accuracy": float((wanted.argmax(1) == samples["test_y"]).mean()),
        "bad_groups": bad,
        "changed": changed / sum(int(np.count_nonzero(values)) for values in pruned),
    }


def run(weights: dict[str, Array], x_NC: Array) -> Array:
    """The network in float64."""
    x_NC = x_NC.astype(np.float64)
    for number in range(len(SIZES) - 2):
        x_NC = np.maximum(x_NC @ weights[f"linear{number}.weight"].T + weights[f"linear{number}.bias"], 0)
    return x_NC @ weights["head.weight"].T + weights["head.bias"]


def compare(folder: Path, packages: Path) -> int:
    """Run all tools in turns and print a table of the fastest of the rounds."""
    prepare(folder)
    here = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", FOLDER: str(folder.resolve())}
    environment = os.environ | here
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    trouble: dict[str, str] = {}
    for _ in range(ROUNDS):
        for tool in [tool for tool in TOOLS if tool not in trouble]:
            command = [sys.executable, __file__, tool, str(folder), str(packages.resolve())]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                kind = "is not there" if done.returncode == _MISSING else f"failed ({done.returncode})"
                trouble[tool] = f"{kind}: {last[:160]}"
            else:
                found[tool].append(json.loads(done.stdout.strip().splitlines()[-1]))
    table = "\n".join(rows(found, trouble))
    write_atomic(folder / TABLE, table + "\n")
    print(table)
    return 0


def rows(found: dict[str, list[dict[str, float]]], trouble: dict[str, str]) -> Iterator[str]:
    """The table: least seconds of the rounds, most memory."""
    yield "| tool | CPU s | MiB | relative error | accuracy | dense | kept weights changed | groups above 2:4 |"
    yield "|---|---|---|---|---|---|---|---|"
    for tool, rounds in found.items():
        if tool in trouble:
            yield f"| {tool} | {trouble[tool]} |"
            continue
        best = min(rounds, key=lambda one: one["seconds"])
        yield (
            f"| {tool} | {best['seconds']:.1f} | {max(one['mib'] for one in rounds):.0f} | {best['error']:.4f} "
            f"| {best['accuracy']:.2%} | {best['dense_accuracy']:.2%} | {best['changed']:.1%} "
            f"| {best['bad_groups']:.0f} |"
        )


def section(folder: Path) -> list[str]:
    """Lines for the page; none where nothing was compared yet."""
    if not (folder / TABLE).is_file():
        return []
    sizes = "-".join(map(str, SIZES))
    return [
        "",
        "## Beside other tools",
        "",
        f"Printed by `python benchmarks/prune.py --peers`: a multilayer perceptron ({sizes}) trained here on",
        f"Fashion-MNIST for {STEPS} steps, 2:4, the classifier dense; the same {CALIBRATION} calibration and",
        f"{HELD_OUT} held-out samples for every tool, its own defaults, one thread, a process of its own, the best of",
        f"{ROUNDS} rounds in turns.",
        "CPU seconds without imports; memory on top of the imported libraries. nm2trt's time",
        "includes reading, writing and verifying the file. Kept weights changed: 0 where a tool only finds a mask.",
        "",
        *(folder / TABLE).read_text(encoding="utf-8").splitlines(),
    ]


if __name__ == "__main__":
    sys.path.append(sys.argv[3])
    sys.exit(child(sys.argv[1], Path(sys.argv[2])))
