"""The pages' commands run as they stand there, or their page says why they are not run."""

import shutil

import numpy as np
import onnx
import pytest
from helpers import REPOSITORY, nm2trt
from onnx import numpy_helper
from page_commands import PAGES, Block, blocks_of, split_command
from run_folders import make_run
from safetensors.numpy import save_file
from small_networks import small_network

from nm2trt.cli.main import COMMANDS, cli

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
TO_RUN = [page for page in PAGES if any(block.to_run for block in blocks_of(page))]

LOG = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v101601] # trtexec --onnx=net.onnx --fp16
[I] Precision: FP32+FP16
[I] Input inference shape: image=32x3x224x224
[I] Selected Device: NVIDIA A100-PCIE-40GB
[I] Throughput: 480.5 qps
[I] Latency: min = 2.4 ms, max = 3.2 ms, mean = 2.5 ms, median = 2.4 ms, percentile(99%) = 2.6 ms
[I] GPU Compute Time: min = 1 ms, max = 3 ms, mean = {ms} ms, median = {ms} ms, percentile(99%) = 2.7 ms
"""


def _network(folder, name):
    onnx.save(small_network(channels=32, sparse=True), folder / name)


def _dense_network(folder, name):
    """Large enough for sparse kernels to be worth it on an A100."""
    onnx.save(small_network(channels=512, width=28), folder / name)


def _encoder(folder, name):
    """One weight in 1:4, which pruning to 1:4 leaves as it is."""
    model = small_network(channels=32)
    w_OIHW = numpy_helper.to_array(model.graph.initializer[0]).copy()
    w_OIHW[:, 1:] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(w_OIHW, "block.ffn.up"))
    model.graph.node[0].input[1] = "block.ffn.up"
    onnx.save(model, folder / name)


def _checkpoint(folder, name):
    w_OI = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    w_OI[:, ::2] = 0
    save_file({"layer.weight": w_OI}, folder / name)


def _samples(folder, name):
    x_NCHW = np.random.default_rng(0).standard_normal((64, 4, 6, 6)).astype(np.float32)
    np.savez(folder / name, x=x_NCHW)


def _sparse_run(folder, name):
    make_run(folder / name)


def _dense_run(folder, name):
    make_run(folder / name, sparse=False)


def _sparse_build(folder, name):
    _make(folder, "runs/sparse")
    _succeeds(folder, ["export", "runs/sparse", "-o", name, "--precision", "fp32", "--builder", "none"])


def _dense_build(folder, name):
    _make(folder, "runs/dense")
    _succeeds(folder, ["export", "runs/dense", "-o", name, "--precision", "fp32", "--builder", "none"])


def _report(folder, name):
    _make(folder, "model.onnx")
    options = ["--backend", "onnxruntime", "--batch", "32", "--duration", "0.2"]
    _succeeds(folder, ["profile", "model.onnx", *options, "-o", name])


def _estimate(folder, name):
    _make(folder, "model.onnx")
    options = ["--gpu", "l4", "--batch", "32", "--json"]
    (folder / name).write_text(_succeeds(folder, ["estimate", "model.onnx", *options]))


def _gpu_file(folder, name):
    shutil.copy(REPOSITORY / "docs" / "gpu-h200.json", folder / name)


def _log(folder, name):
    (folder / name).write_text(LOG.format(ms=2.2 if name == "dense.log" else 2.0))


MAKERS = {
    **dict.fromkeys(("model.onnx", "somebodys-model.onnx", "others.onnx"), _network),
    "dense.onnx": _dense_network,
    "encoder.onnx": _encoder,
    "checkpoint.safetensors": _checkpoint,
    **dict.fromkeys(("samples.npz", "inputs.npz", "F.npz"), _samples),
    **dict.fromkeys(("runs/sparse", "RUN"), _sparse_run),
    "runs/dense": _dense_run,
    **dict.fromkeys(("BUILD", "build", "builds/sparse"), _sparse_build),
    **dict.fromkeys(("DENSE_BUILD", "builds/dense"), _dense_build),
    **dict.fromkeys(("report", "report_a", "report_b"), _report),
    "estimate.json": _estimate,
    **dict.fromkeys(("gpu.json", "docs/gpu-h200.json"), _gpu_file),
    **dict.fromkeys(("dense.log", "sparse.log"), _log),
}
"""Files and folders that pages name without having made them."""


def _make(folder, name):
    if not (folder / name).exists():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        MAKERS[name](folder, name)


def _succeeds(folder, arguments):
    result = nm2trt(*arguments, cwd=folder)
    assert result.returncode == 0, (arguments, result.stdout[-800:], result.stderr)
    return result.stdout


def _remove(path):
    """What an earlier command wrote, with the documents beside it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        for each in (path, *path.parent.glob(f"{path.stem}.*.json")):
            each.unlink(missing_ok=True)


def _run(folder, words):
    """One command as a user would give it: what it reads is there, and what an earlier one wrote is out of its way."""
    program, *arguments = words
    assert program == "nm2trt", f"{program} is not run by this test: mark its line"
    target = None
    if ">" in arguments:
        at = arguments.index(">")
        target, arguments = arguments[at + 1], arguments[:at]
    output = arguments[arguments.index("-o") + 1] if "-o" in arguments else ""
    for word in arguments:
        if word in MAKERS and word != output:
            _make(folder, word)
    if output:
        _remove(folder / output)
    printed = _succeeds(folder, arguments)
    if target is not None:
        (folder / target).write_text(printed)


def test_pages_have_commands():
    assert len(BLOCKS) > 30
    assert {"README.md", "verify.md", "export.md"} <= {page.name for page in TO_RUN}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_commands_are_run_or_marked(block):
    assert not block.problem, f"{block.place}: {block.problem}"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_options_exist(block):
    for command in block.commands:
        for words in split_command(command):
            if words and words[0] == "nm2trt" and len(words) > 1 and words[1] in COMMANDS:
                known = {
                    option
                    for each in cli.get_command(None, words[1]).params
                    for option in each.opts + each.secondary_opts
                }
                used = {word.partition("=")[0] for word in words[2:] if word.startswith("-") and word != "--"}
                assert used <= known | {"--help"}, f"{block.place}: {command}: {sorted(used - known)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=lambda page: page.name)
def test_commands_run(page, tmp_path):
    for block in blocks_of(page):
        for command in block.to_run:
            for words in split_command(command):
                _run(tmp_path, words)


def test_marks_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Text\n\n<!-- run; not 2: no GPU -->\n\n"
        "    nm2trt verify a \\\n        --strict\n    nm2trt profile b  # GPU\n\n"
        "words\n\n    no command\n\n```\n$ nm2trt doctor\nnm2trt printed this\n```\n\n"
        "<!-- run; not 3: why -->\n\n    make x\n"
    )
    first, second, third = blocks_of(page)
    assert first == Block(
        page, 5, ("nm2trt verify a --strict", "nm2trt profile b  # GPU"), "<!-- run; not 2: no GPU -->"
    )
    assert first.to_run == ["nm2trt verify a --strict"]
    assert (second.commands, second.to_run) == (("nm2trt doctor",), [])
    assert "no mark" in second.problem
    assert "fewer" in third.problem
    assert split_command("A=1 nm2trt x 'a b' && nm2trt y > f # z") == [
        ["A=1", "nm2trt", "x", "a b"],
        ["nm2trt", "y", ">", "f"],
    ]
