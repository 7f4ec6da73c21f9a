"""Time, peak memory and accuracy of `nm2trt calibrate` beside onnxruntime's plain quantize_static, on the same samples.

    python benchmarks/calibrate.py MODEL.onnx --data fashion-mnist [--samples 128,512,2048] [--batch-size 64]

Every tool runs in a process of its own, on the same batches. Time is processor time of quantizing alone, no imports
and no checking; memory is the process's peak above what it had after imports. All results are checked by the same
code on the same held-out samples. Model Optimizer's ONNX path is run where `modelopt.onnx` can be imported (put it on
PYTHONPATH).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = ("nm2trt entropy", "nm2trt minmax", "ort minmax", "ort entropy", "ort percentile", "modelopt entropy")
_SKIPPED = 77


class Reader:
    """The samples as onnxruntime's quantizer asks for them."""

    def __init__(self, source, size) -> None:
        self._make = lambda: (batch.feed for batch in source.calibration(size))
        self._batches = self._make()

    def get_next(self):
        return next(self._batches, None)

    def rewind(self):
        self._batches = self._make()

    def get_first(self):
        return next(self._make())


def by_nm2trt(model, source, size, method, out):
    from nm2trt.calibration.collection import collect, ranges_of, scales_of
    from nm2trt.calibration.graph import open_float_graph
    from nm2trt.calibration.insertion import insert
    from nm2trt.calibration.placement import PLACEMENTS, place
    from nm2trt.calibration.ranges import Method

    graph = open_float_graph(model)
    placement = place(graph, PLACEMENTS["default"], tuple(graph.layers), set())
    found = collect(graph, placement.edges, ((batch.feed, batch.count) for batch in source.calibration(size)))
    scales = scales_of(ranges_of(found, Method.parse(method)), placement)
    out.write_bytes(insert(graph, placement, scales).SerializeToString())


def by_onnxruntime(model, source, size, method, out):
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    quantize_static(
        model,
        out,
        Reader(source, size),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[method],
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True},
    )


def by_modelopt(model, source, size, method, out):
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data_reader=Reader(source, size),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
    )


def child(arguments: argparse.Namespace) -> None:
    """Quantize with one tool and print what it took."""
    tool, method = arguments.tool.split()
    if tool == "modelopt":
        try:
            importlib.import_module("modelopt.onnx.quantization")
        except ImportError:
            sys.exit(_SKIPPED)
    import onnxruntime.quantization  # noqa: F401 -- imports are not timed

    from nm2trt.calibration import collection, insertion  # noqa: F401
    from nm2trt.calibration.graph import load_proto, open_float_graph
    from nm2trt.calibration.sources import open_data

    ports = open_float_graph(arguments.model).ports
    source = open_data(
        arguments.data, ports, samples=arguments.count, held_out=arguments.held_out, data_dir=arguments.data_dir
    )
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = {"nm2trt": by_nm2trt, "ort": by_onnxruntime, "modelopt": by_modelopt}[tool]
    logging.disable(logging.WARNING)
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work(arguments.model, source, arguments.batch_size, method, arguments.out)
    seconds = time.process_time() - started
    after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    from nm2trt.calibration.agreement import OutputChecker

    checker = OutputChecker(load_proto(arguments.model), lambda: source.held_out(arguments.batch_size), source.task, "")
    found = checker.agreement(load_proto(arguments.out))
    print(
        json.dumps(
            {
                "seconds": seconds,
                "mib": (after_kib - before_kib) / 1024,
                "before": found.score_before,
                "after": found.score_after,
                "sqnr_db": found.sqnr_db,
                "cosine": found.cosine,
            }
        )
    )


def parent(arguments: argparse.Namespace) -> None:
    """Run every tool at every number of samples."""
    print(f"{'tool':18} {'samples':>7} {'CPU s':>8} {'MiB':>8} {'score':>8} {'drop':>7} {'SQNR dB':>8} {'cosine':>8}")
    for count in arguments.samples.split(","):
        for tool in TOOLS:
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    *(sys.executable, __file__, arguments.model, "--data", arguments.data, "--tool", tool),
                    *("--count", count, "--out", str(Path(folder) / "out.onnx"), "--batch-size"),
                    *(str(arguments.batch_size), "--held-out", str(arguments.held_out)),
                    *(("--data-dir", str(arguments.data_dir)) if arguments.data_dir else ()),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == _SKIPPED:
                print(f"{tool:18} {count:>7} modelopt[onnx] is not installed")
                continue
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                print(f"{tool:18} {count:>7} failed ({done.returncode}): {last[:120]}")
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            scored = found["after"] is not None
            score = f"{found['after']:8.2%}" if scored else f"{'-':>8}"
            drop = f"{100 * (found['after'] - found['before']):+7.2f}" if scored else f"{'-':>7}"
            print(
                f"{tool:18} {count:>7} {found['seconds']:8.2f} {found['mib']:8.0f} {score} {drop} "
                f"{found['sqnr_db']:8.1f} {found['cosine']:8.5f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", default="128,512,2048")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=10_000)
    for hidden in ("--tool", "--out", "--count"):
        parser.add_argument(hidden, help=argparse.SUPPRESS, type={"--out": Path, "--count": int}.get(hidden, str))
    arguments = parser.parse_args()
    if arguments.tool:
        child(arguments)
    else:
        parent(arguments)


if __name__ == "__main__":
    main()
