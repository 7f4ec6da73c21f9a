"""What the server's batching brings: one build served twice by one tritonserver, with and without it.

    python benchmarks/serving.py BUILD

Both models run in the same server at the same time; rounds alternate between them, so that whatever else the machine
does meets both. Needs `make triton` and the extra `server`. Prints the ratio of requests per second, batched over
single, per number of clients: the median over rounds and its range.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from nm2trt.artifacts import BuildDocument
from nm2trt.serve import PackageRequest, package_triton
from nm2trt.serve.address import Address
from nm2trt.serve.installed import find_triton
from nm2trt.serve.load import load_requests, run_level
from nm2trt.serve.open_client import open_client
from nm2trt.serve.reference import Reference, read_limits
from nm2trt.serve.samples import choose_samples
from nm2trt.serve.server import choose_ports, start

VARIANTS = {"single": 1, "batched": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()

    build = BuildDocument.read(options.build)
    onnx = options.build / "model.onnx"
    requests = load_requests(choose_samples(build, read_limits(onnx)), Reference(onnx))
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        for name, max_batch in VARIANTS.items():
            package_triton(
                PackageRequest(
                    builds=(options.build,), repository=repository, name=name, server="triton-cpu", max_batch=max_batch
                )
            )
        with start(find_triton(), repository, choose_ports(0, 0, 0), needed=frozenset({"python"})) as server:
            server.wait_until_ready(60)
            address = Address(host="127.0.0.1", port=server.ports.grpc)
            print("clients   single/s  batched/s   ratio (range)      p99 single, batched ms")
            for clients in options.clients:
                rounds = [
                    {name: level(name, address, build, requests, clients, options.seconds) for name in VARIANTS}
                    for _ in range(options.rounds)
                ]
                show(clients, rounds)


def level(name, address, build, requests, clients, seconds):
    found = run_level(
        "grpc",
        lambda: open_client("grpc", address, name, "", build.inputs),
        requests,
        concurrency=clients,
        duration_s=seconds,
        tolerance=1e-2,
    )
    if found.errors or found.wrong:
        raise SystemExit(f"{name}: {found.first_error}")
    return found


def show(clients, rounds):
    ratios = [one["batched"].throughput_per_s / one["single"].throughput_per_s for one in rounds]
    rates = {name: statistics.median(one[name].throughput_per_s for one in rounds) for name in VARIANTS}
    tails = {name: statistics.median(one[name].p99_ms for one in rounds) for name in VARIANTS}
    print(
        f"{clients:7}   {rates['single']:8,.0f}  {rates['batched']:9,.0f}   {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})   {tails['single']:.1f}, {tails['batched']:.1f}"
    )


if __name__ == "__main__":
    main()
