"""A served build under constant load while a new version arrives and the server is killed.

    python benchmarks/serving_soak.py BUILD [--next BUILD] [--seconds 30] [--clients 8]

Half of the clients speak HTTP, half gRPC. Every answer is read strictly and compared with ONNX Runtime's on the graph
of the version that it names. Three phases, of `--seconds` each:

1. load alone: every request is answered, and rightly;
2. a new version is packaged into the watched repository (of `--next`, or of the same build): the same, by one version
   or the other, and the new one answers in the end;
3. tritonserver is killed: requests fail until `nm2trt serve` has started it again; no answer is wrong.

Exit 1 when a phase is not so. Needs `make triton` and the extra `server`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from nm2trt.artifacts import BuildDocument
from nm2trt.serve import PackageRequest, package_triton
from nm2trt.serve.address import Address
from nm2trt.serve.answers import RequestFailed
from nm2trt.serve.compare import compare_answer, output_scales
from nm2trt.serve.open_client import open_client
from nm2trt.serve.reference import Reference, read_limits
from nm2trt.serve.samples import choose_samples

NAME = "soak"
TOLERANCE = 1e-3
LARGEST = 8
PAUSE_S = 0.05


class Load:
    """Clients that ask until they are told to stop; `phase` says where their answers are counted."""

    def __init__(self, builds, addresses, clients):
        self.build = BuildDocument.read(builds[0])
        onnx = builds[0] / "model.onnx"
        (group, *_) = choose_samples(self.build, read_limits(onnx)).groups
        sizes = range(1, LARGEST + 1) if group.batched else [1]
        self.feeds = [group.feed(at, size) for at in range(16) for size in sizes]
        references = [Reference(build / "model.onnx") for build in builds]
        self.right = {
            str(number): [reference.run(feed) for feed in self.feeds] for number, reference in enumerate(references, 1)
        }
        self.scales = output_scales(answer for answers in self.right.values() for answer in answers)
        self.addresses = addresses
        self.phase, self.stopped, self.lock = "", threading.Event(), threading.Lock()
        self.counts = collections.defaultdict(collections.Counter)
        self.first = {}
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(clients)]

    def work(self, number):
        protocol = ("http", "grpc")[number % 2]
        client, turn = None, number
        while not self.stopped.is_set():
            turn += 1
            at = turn * 7 % len(self.feeds)
            try:
                client = client or open_client(
                    protocol, self.addresses[protocol], NAME, "", self.build.inputs, timeout_s=5.0
                )
                answer = client.ask(self.feeds[at])
                what, detail = self.checked(at, answer)
            except RequestFailed as error:
                what, detail = "errors", str(error)
                time.sleep(PAUSE_S)
            except Exception as error:  # noqa: BLE001 -- a client that dies must not pass for one that is content
                what, detail = "wrong", f"client failed: {error!r}"
            # The phase in which it ended: what was under way when the server was killed failed of that.
            phase = self.phase
            with self.lock:
                self.counts[phase][what] += 1
                if detail:
                    self.first.setdefault((phase, what), detail)
        if client is not None:
            client.close()

    def checked(self, at, answer):
        right = self.right.get(answer.version)
        if right is None:
            return "wrong", f"version {answer.version!r} answered"
        compared = compare_answer(right[at], answer.outputs, tolerance=TOLERANCE, scales=self.scales)
        failed = [one for one in compared if not one.passed]
        return ("wrong", str(failed[0])) if failed else (f"version {answer.version}", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--next", type=Path, dest="next_build")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    builds = [options.build, options.next_build or options.build]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        package_triton(PackageRequest(builds=(builds[0],), repository=repository, name=NAME, server="triton-cpu"))
        process, document = serve(repository)
        try:
            load = Load(builds, addresses_of(document), options.clients)
            failures = run(load, repository, builds, document, options)
        finally:
            process.terminate()
            process.wait(60)
    print("pass" if not failures else "FAIL: " + "; ".join(failures))
    return 1 if failures else 0


def serve(repository):
    ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "nm2trt", "serve", str(repository), "--json", "--poll", "1", *ports]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return process, json.loads(text)
    raise SystemExit("nm2trt serve did not start")


def addresses_of(document):
    found = {"http": document["http"].removeprefix("http://"), "grpc": document["grpc"]}
    return {
        name: Address(host=text.rpartition(":")[0], port=int(text.rpartition(":")[2])) for name, text in found.items()
    }


def run(load, repository, builds, document, options):
    failures = []
    load.phase = "load alone"
    for thread in load.threads:
        thread.start()
    try:
        time.sleep(options.seconds)
        load.phase = "new version"
        package_triton(PackageRequest(builds=(builds[1],), repository=repository, name=NAME, server="triton-cpu"))
        time.sleep(options.seconds)
        load.phase = "killed"
        os.kill(document["pid"], signal.SIGKILL)
        time.sleep(options.seconds)
    finally:
        load.stopped.set()
        for thread in load.threads:
            thread.join(30)
    if any(thread.is_alive() for thread in load.threads):
        failures.append("a client did not end")
    for phase in ("load alone", "new version", "killed"):
        count = load.counts[phase]
        right = {what: number for what, number in sorted(count.items()) if what.startswith("version")}
        print(f"{phase:12} {sum(right.values()):7,} right {right}, {count['errors']} errors, {count['wrong']} wrong")
        if count["wrong"] or (count["errors"] and phase != "killed"):
            failures.append(f"{phase}: {load.first.get((phase, 'wrong')) or load.first.get((phase, 'errors'))}")
        if not right or (phase != "load alone" and "version 2" not in right):
            failures.append(f"{phase}: not answered by the version that should")
    return failures


if __name__ == "__main__":
    sys.exit(main())
