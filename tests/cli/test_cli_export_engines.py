"""The engine options of `nm2trt export`, on RTX."""

import json
import os
import signal
import subprocess
import time

import onnx
import pytest
from helpers import assert_one_error_line, export_run, forked_python, nm2trt_inline, requires
from onnx import TensorProto, helper
from run_folders import make_run

from nm2trt.artifacts import BatchRange, BuildDocument, GraphPort
from nm2trt.engine import BuildProgress
from nm2trt.errors import InputError
from nm2trt.pipelines.engines import copy_onnx, profile_of, progress_bar

pytestmark = requires(rtx=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    make_run(folder / "sparse", "mlp")
    make_run(folder / "dense", "mlp", sparse=False)
    make_run(folder / "other", "resnet8", sparse=False)
    for name in ("dense", "other"):
        export_run(folder / name, folder / f"{name}-build", builder="none", precision="fp16")
    return folder


def export(made, folder, *options):
    return nm2trt_inline(
        "export", made / "sparse", "-o", folder / "b", "--precision", "fp16", "--builder", "tensorrt-rtx", *options
    )


def test_dense_weights_add_the_dense_variant(made, tmp_path):
    result = export(made, tmp_path, "--dense", made / "dense-build", "--ort", "--workspace", "64M")
    assert result.returncode == 0, result.stderr
    build = BuildDocument.read(tmp_path / "b")
    assert [(one.variant, one.onnx) for one in build.engines] == [
        ("dense", "dense.onnx"), ("control", "model.onnx"), ("sparse", "model.onnx"),
    ]  # fmt: skip
    assert (tmp_path / "b" / "dense.onnx").read_bytes() == (made / "dense-build" / "model.onnx").read_bytes()
    shas = {one.variant: one.sha256 for one in build.engines}
    assert shas["dense"] != shas["control"]
    options = json.loads((tmp_path / "b" / "ort-tensorrt.json").read_text())["providers"][0][1]
    assert (options["trt_fp16_enable"], options["trt_max_workspace_size"]) == ("1", str(64 << 20))
    assert {"dense.onnx", "ort-tensorrt.json", "dense.plan"} <= set(build.files)


@pytest.mark.parametrize(
    ("dense", "words"),
    [
        ("other-build", "is not the sparse network with other weights"),
        ("sparse-build", "its weights are not dense"),
    ],
)
def test_what_is_no_dense_counterpart_is_refused(made, tmp_path, dense, words):
    if dense == "sparse-build":
        export_run(made / "sparse", made / dense, builder="none", precision="fp16")
    assert_one_error_line(export(made, tmp_path, "--dense", made / dense), 3, words)
    assert list(tmp_path.iterdir()) == []


def test_all_wrong_engine_options_are_told_at_once(made, tmp_path):
    result = export(
        made, tmp_path, "--workspace", "much", "--optimization-level", "9", "--rebuilds", "0", "--dense", "none.onnx"
    )
    assert_one_error_line(
        result, 2, "--workspace much", "--optimization-level 9", "--rebuilds 0", "--dense none.onnx: does not exist"
    )
    result = export(made, tmp_path, "--sm", "42")
    assert_one_error_line(result, 2, "cannot compile for SM42", "choose from 75, 80")
    assert_one_error_line(export(made, tmp_path, "--refittable"), 2, "--refittable", "without a GPU")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_and_no_builder(made, tmp_path):
    """The command is killed outright while the worker builds: the worker follows, and only a hidden half stays."""
    code = (
        "import os, signal, sys\n"
        "from nm2trt.engine import process\n"
        "real = process.subprocess.Popen\n"
        "def start(*a, **k):\n"
        "    child = real(*a, **k)\n"
        "    if 'job.json' in a[0][-1]:\n"
        "        print(child.pid, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return child\n"
        "process.subprocess.Popen = start\n"
        "from nm2trt.cli.main import run\n"
        "run(sys.argv[1:])\n"
    )
    arguments = ("export", made / "sparse", "-o", tmp_path / "b", "--builder", "tensorrt-rtx")
    (tmp_path / "killed.py").write_text(code)
    python, environment = forked_python(os.environ)
    killed = subprocess.run(
        [python, tmp_path / "killed.py", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    worker = int(killed.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _alive(worker):
        time.sleep(0.1)
    assert not _alive(worker)
    assert not (tmp_path / "b").exists()
    # The next export is not in the way of what the killed one left.
    assert export(made, tmp_path).returncode == 0


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_profiles_of_several_inputs():
    batch = BatchRange(min=1, opt=2, max=4)
    ports = (
        GraphPort(name="x", dtype="float32", shape=("batch", 3, 8)),
        GraphPort(name="scale", dtype="float32", shape=(1,)),
        GraphPort(name="mask", dtype="float32", shape=("batch", 8)),
    )
    assert profile_of(ports, batch) == {
        "x": ((1, 3, 8), (2, 3, 8), (4, 3, 8)),
        "mask": ((1, 8), (2, 8), (4, 8)),
    }
    assert profile_of(ports[1:2], None) == {}
    # Time first: the one dynamic dimension that an export leaves is its batch, wherever it stands.
    later = (GraphPort(name="frames", dtype="float32", shape=(5, "batch", 8)),)
    assert profile_of(later, batch) == {"frames": ((5, 1, 8), (5, 2, 8), (5, 4, 8))}
    for shape, sizes in ((("batch", "tokens"), batch), (("batch", 3), None)):
        with pytest.raises(InputError, match="has no size"):
            profile_of((GraphPort(name="ids", dtype="int64", shape=shape),), sizes)


def test_the_bar_is_full_when_the_phase_is():
    line = progress_bar(BuildProgress(phase="Building: Tactics", done=4, of=4))
    assert line.count("━") == 24
    assert line.endswith("4 of 4, Building: Tactics")
    assert progress_bar(BuildProgress(phase="x", done=0, of=3)).count("━") == 0


def test_external_data_are_copied_under_the_new_name(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], bytes(range(256)) * 64, raw=True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:], [weight]))
    source = tmp_path / "from" / "a.onnx"
    onnx.save(model, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    copy_onnx(source, tmp_path / "to" / "m.onnx")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["m.onnx", "m.onnx.data"]
    copied = onnx.load(tmp_path / "to" / "m.onnx")
    assert copied.graph.initializer[0].raw_data == weight.raw_data
