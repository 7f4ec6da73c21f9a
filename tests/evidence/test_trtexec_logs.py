# ruff: noqa: E501, ISC004 -- lines of logs stand as they are
"""trtexec's own logs in the spellings of their releases; texts made by hand after the documented forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.evidence.text import normalize
from nm2trt.evidence.trtexec import read_trtexec
from nm2trt.evidence.trtexec_log import read_trtexec_log, read_trtexec_logs
from nm2trt.evidence.trtexec_options import read_shapes

HEAD = "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec {command}\n"


def read(text, *, version="8601", command="--onnx=n.onnx"):
    return read_trtexec_log(normalize((HEAD.format(version=version, command=command) + text).split("\n")))


@pytest.mark.parametrize(
    ("line", "shapes"),
    [
        ("[I] Input inference shape: x=32x3x224x224", {"x": (32, 3, 224, 224)}),
        ("[I] Input inference shape : x=32x3x224x224", {"x": (32, 3, 224, 224)}),
        ("[I] Input inference shape: input:0=8x224x224x3", {"input:0": (8, 224, 224, 3)}),
        ("[I] Input inference shape: a=b=8x2", {"a=b": (8, 2)}),
        ("[I] Created input binding for data with dimensions 8x3x32x32", {"data": (8, 3, 32, 32)}),
        ("[I] Input binding for data with dimensions 8x3x32x32 is created.", {"data": (8, 3, 32, 32)}),
        ("[W] Dynamic dimensions required for input: x, but no shapes were provided. Automatically overriding shape to: 1x3x2x2",
         {"x": (1, 3, 2, 2)}),
        ("[I] Input binding for data with dimensions 8x3x32x32 and type fp32 is created.", {"data": (8, 3, 32, 32)}),
        ("[I] Input binding for n with dimensions  and type int64 is created.", {"n": ()}),
        ("[I] Set shape of input tensor data to: 8x3x32x32", {"data": (8, 3, 32, 32)}),
        ("[I] Set shape of input tensor data for optimization profile 0 to: MIN=1x3 OPT=4x3 MAX=8x3", {}),
        ("[I] Input inference shapes: model", {}),
        ("[I] Input build shape: x=1x3x2x2+4x3x2x2+8x3x2x2", {}),
        ("[I] Output binding for y with dimensions 8x10 is created.", {}),
    ],
)  # fmt: skip
def test_shapes_in_every_spelling(line, shapes):
    assert read(line).shapes == shapes


@pytest.mark.parametrize(
    ("command", "shapes", "batch"),
    [
        ("--onnx=n.onnx --shapes=x:32x3x224x224", {"x": (32, 3, 224, 224)}, None),
        ("--onnx=n.onnx --shapes=ids:8x128,mask:8x128", {"ids": (8, 128), "mask": (8, 128)}, None),
        ("--onnx=n.onnx --shapes='input:0':4x2", {"input:0": (4, 2)}, None),
        ("--onnx=n.onnx --minShapes=x:1x3 --optShapes=x:8x3 --maxShapes=x:16x3", {"x": (8, 3)}, None),
        ("--onnx=n.onnx --optShapes=x:8x3 --shapes=x:4x3", {"x": (4, 3)}, None),
        ("--loadEngine=n.plan --loadInputs=x:x.bin", {}, None),
        ("--deploy=n.prototxt --batch=16", {}, 16),
        ("--onnx='broken", {}, None),
    ],
)
def test_shapes_of_the_command_line(command, shapes, batch):
    log = read("", command=command)
    assert (log.shapes, log.implicit_batch) == (shapes, batch)


def test_all_inputs_are_read_and_what_was_bound_wins():
    log = read(
        "[I] Input inference shape : ids=8x128\n[I] Input inference shape : mask=8x128\n"
        "[I] Input binding for ids with dimensions 8x128 is created.\n"
        "[I] Input binding for mask with dimensions 8x64 is created.\n",
        command="--shapes=ids:1x1",
    )
    assert log.shapes == {"ids": (8, 128), "mask": (8, 64)}


@given(
    st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9_.]{0,6}\Z"), st.lists(st.integers(1, 999), min_size=1, max_size=4))
)
def test_shape_options_are_read_as_they_are_written(shapes):
    text = ",".join(f"{name}:{'x'.join(map(str, sizes))}" for name, sizes in shapes.items())
    assert read_shapes(text) == {name: tuple(sizes) for name, sizes in shapes.items()}


SUMMARY = {
    "8.0 to 8.4": "[I] === Performance summary ===\n[I] Throughput: 480.1 qps\n"
    "[I] Latency: min = 2.4 ms, max = 3.1 ms, mean = 2.45 ms, median = 2.43 ms, percentile(99%) = 2.5 ms\n"
    "[I] End-to-End Host Latency: min = 9 ms, max = 9 ms, mean = 9 ms, median = 9 ms, percentile(99%) = 9 ms\n"
    "[I] GPU Compute Time: min = 2 ms, max = 2.2 ms, mean = 2.08 ms, median = 2.06 ms, percentile(99%) = 2.1 ms\n"
    "[I] Total GPU Compute Time: 2.9 s\n",
    "10.x": "[I] Timing trace has 1498 queries over 3.0 s\n[I] === Performance summary ===\n[I] Throughput: 480.1 qps\n"
    "[I] Latency: min = 2.4 ms, max = 3.1 ms, mean = 2.45 ms, median = 2.43 ms, percentile(90%) = 2.46 ms, "
    "percentile(95%) = 2.48 ms, percentile(99%) = 2.5 ms\n"
    "[I] GPU Compute Time: min = 2 ms, max = 2.2 ms, mean = 2.08 ms, median = 2.06 ms, percentile(90%) = 2.09 ms, "
    "percentile(95%) = 2.095 ms, percentile(99%) = 2.1 ms\n[I] Total GPU Compute Time: 2.9 s\n"
    "[W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.\n",
    "7.x, a block": "[I] Host Latency\n[I] min: 2.4 ms (end to end 2.5 ms)\n[I] max: 3.1 ms (end to end 3.2 ms)\n"
    "[I] mean: 2.45 ms (end to end 2.5 ms)\n[I] median: 2.43 ms (end to end 2.5 ms)\n"
    "[I] percentile: 2.5 ms at 99% (end to end 2.6 ms at 99%)\n[I] throughput: 480.1 qps\n[I] walltime: 3.0 s\n"
    "[I] GPU Compute\n[I] min: 2 ms\n[I] max: 2.2 ms\n[I] mean: 2.08 ms\n[I] median: 2.06 ms\n"
    "[I] percentile: 2.1 ms at 99%\n[I] total compute time: 2.9 s\n",
    "broken by a word wrap": "[I] Throughput: 480.1 qps\n[I] Latency: min = 2.4 ms, max = 3.1 ms, mean = 2.45 ms,\n"
    "             median = 2.43 ms, percentile(99%) = 2.5 ms\n[I] GPU Compute Time: min = 2 ms, max = 2.2 ms,\n"
    "   mean = 2.08 ms, median = 2.06 ms,\n   percentile(99%) = 2.1 ms\n",
}


@pytest.mark.parametrize("text", SUMMARY.values(), ids=SUMMARY)
def test_the_summary_of_every_release(text):
    log = read(text)
    assert (log.compute.median_ms, log.compute.mean_ms, log.compute.low_ms, log.compute.high_ms) == (2.06, 2.08, 2, 2.2)
    assert log.compute.percentiles_ms[99.0] == 2.1
    assert (log.latency.median_ms, log.latency.percentiles_ms[99.0]) == (2.43, 2.5)
    assert log.queries_per_s == 480.1


TABLES = {
    "name last, 8.6 on": (
        "[I] === Profile (500 iterations ) ===\n[I]    Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer\n"
        "[I]      100.00       0.2000       0.1900      66.7   conv1 + relu1\n"
        "[I]       50.00       0.1000       0.0900      33.3   PWN(a, b) || c\n"
        "[I]      150.00       0.3000       0.2800     100.0   Total\n[I] \n[I] Layer x\n",
        [0.19, 0.09],
    ),
    "name first, 8.4": (
        "[I] === Profile (500 iterations ) ===\n[I]            Layer   Time (ms)   Avg. Time (ms)   Median Time (ms)   Time %\n"
        "[I]    conv1 + relu1      100.00           0.2000             0.1900     66.7\n"
        "[I]   PWN(a, b) || c       50.00           0.1000             0.0900     33.3\n"
        "[I]            Total      150.00           0.3000             0.2800    100.0\n[I] \n",
        [0.19, 0.09],
    ),
    "name first, up to 8.3": (
        "[I] === Profile (500 iterations ) ===\n[I]            Layer   Time (ms)   Avg. Time (ms)   Time %\n"
        "[I]    conv1 + relu1      100.00           0.2000     66.7\n"
        "[I]   PWN(a, b) || c       50.00           0.1000     33.3\n[I]            Total      150.00           0.3000    100.0\n",
        [None, None],
    ),
}


@pytest.mark.parametrize(("text", "medians"), TABLES.values(), ids=TABLES)
def test_the_table_of_layer_times_in_every_layout(text, medians):
    log = read(text)
    assert log.iterations == 500
    assert [layer.name for layer in log.layers] == ["conv1 + relu1", "PWN(a, b) || c"]
    assert [layer.average_ms for layer in log.layers] == [0.2, 0.1]
    assert [layer.median_ms for layer in log.layers] == medians


@pytest.mark.parametrize(("text", "medians"), TABLES.values(), ids=TABLES)
def test_a_table_that_was_copied_without_its_title(text, medians):
    log = read_trtexec_log(normalize(text.split("\n")[1:]))
    assert [layer.median_ms for layer in log.layers] == medians
    assert log.iterations == 0


def test_a_layer_of_the_table_that_did_not_run_is_said():
    text = TABLES["name last, 8.6 on"][0].replace(
        "50.00       0.1000       0.0900      33.3", "0.00   -nan   0.0000   0.0"
    )
    log = read(text)
    assert [layer.name for layer in log.layers] == ["conv1 + relu1"]
    assert "1 layers of the profile did not run" in log.notes[0]


def test_a_loaded_engine_tells_no_precision():
    assert read("[I] Precision: FP32+FP16").precision == "FP32+FP16"
    assert read("[I] Format: *\n[I] Precision: FP32").precision == ""
    assert read("[I] Precision: FP32", command="--loadEngine=n.plan").precision == ""


def test_the_version_in_every_spelling():
    assert read("").version == "8.6.1"
    assert read("", version="100300").version == "10.3.0"
    for text in ("8.5.3", "8503"):
        assert read_trtexec_log(normalize([f"[I] TensorRT version: {text}", "[I] x"])).version == "8.5.3"


def test_a_batch_of_one_on_the_command_line_is_not_the_batch_of_an_explicit_engine(tmp_path):
    line = "[I] Created input binding for x with dimensions 8x3x4x4\n"
    (tmp_path / "a.log").write_text(HEAD.format(version="8001", command="--loadEngine=n.plan --batch=1") + line)
    assert read_trtexec(tmp_path / "a.log").batch == 8


BUILD = HEAD.format(version="8601", command="--onnx=n.onnx --fp16 --sparsity=enable") + (
    "[I] Precision: FP32+FP16\n[I] Selected Device: RTX 3080\n"
    "[I] [TRT] (Sparsity) Layers eligible for sparse math: c1, c2\n"
    "[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: c2\n"
)
TIMED = HEAD.format(version="8601", command="--loadEngine=n.plan --useCudaGraph") + (
    "[I] Format: *\n[I] Precision: FP32\n[I] Input inference shape: x=8x3x4x4\n[I] Data transfers: Disabled\n"
    "[I] CUDA Graph: Enabled\n[I] Spin-wait: Enabled\n[I] Selected Device: RTX 3080\n" + SUMMARY["10.x"]
)


def check_joined(run):
    assert run.log.eligible == {"c1": False, "c2": True}
    assert run.toggles.words() == "data transfers off, CUDA graph on, spin wait on"
    assert (run.precision, run.batch, run.summary.median_ms) == ("FP32+FP16", 8, 2.06)


@pytest.mark.parametrize("names", [("n.build.log", "n.profile.log"), ("n.a.txt", "n.b"), ("n.zz", "n.aa")])
def test_the_logs_of_build_and_timed_run_are_joined_whatever_their_names(tmp_path, names):
    (tmp_path / names[0]).write_text(BUILD)
    (tmp_path / names[1]).write_text(TIMED)
    check_joined(read_trtexec(tmp_path / "n"))
    check_joined(read_trtexec(tmp_path))


def test_both_runs_in_one_file_are_joined_too(tmp_path):
    (tmp_path / "n.log").write_text(BUILD + TIMED)
    check_joined(read_trtexec(tmp_path / "n.log"))
    assert len(read_trtexec_logs(normalize((BUILD + TIMED).split("\n")))) == 2


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (BUILD, BUILD.replace("layers: c2", "layers: c1"), "a second log of a build"),
        (TIMED, TIMED.replace("median = 2.06", "median = 1.06"), "a second log with times"),
        (BUILD, TIMED.replace("RTX 3080", "RTX 3090"), "RTX 3080 in a.log, RTX 3090 here"),
    ],
)
def test_logs_of_two_engines_under_one_prefix_are_refused(tmp_path, first, second, words):
    (tmp_path / "a.log").write_text(first)
    (tmp_path / "b.log").write_text(second)
    with pytest.raises(InputError, match=words):
        read_trtexec(tmp_path)


def test_a_log_of_layer_times_beside_the_timed_run_does_not_replace_its_times(tmp_path):
    table = "[I] === Profile (9 iterations ) ===\n[I] Layer   Time (ms)   Avg. Time (ms)   Time %\n[I] c1   9.0   1.0   100.0\n"
    slow = TIMED.replace("median = 2.06", "median = 3.06")
    (tmp_path / "n.time.log").write_text(TIMED)
    (tmp_path / "n.profile.log").write_text(slow.replace("[I] GPU Compute", f"{table}[I] GPU Compute", 1))
    run = read_trtexec(tmp_path / "n")
    assert run.summary is not None
    assert f"median = {run.summary.median_ms}" in TIMED
    assert [layer.name for layer in run.layers] == ["c1"]


def test_copies_of_a_file_are_that_file(tmp_path):
    for name, text in (("p.json", '[{"count": 3}, {"name": "a", "averageMs": 1.5}]'), ("t.json", '[{"computeMs": 2.5}]'),
                       ("n.log", TIMED)):  # fmt: skip
        (tmp_path / f"r.{name}").write_text(text)
        (tmp_path / f"r.{name}.bak").write_text(text)
    run = read_trtexec(tmp_path / "r")
    assert run.compute_ms is not None
    assert (len(run.layers), run.compute_ms.tolist()) == (1, [2.5])


def test_two_layer_files_under_one_prefix_are_refused_unless_they_are_one(tmp_path):
    layers = '{"Layers": [{"Name": "a", "LayerType": "CaskConvolution"}]}'
    (tmp_path / "run.layers.json").write_text(layers)
    (tmp_path / "run.graph.json").write_text(layers)
    assert len(read_trtexec(tmp_path / "run").inspection.layers) == 1
    (tmp_path / "run.graph.json").write_text(layers.replace('"a"', '"b"'))
    with pytest.raises(InputError, match="a second layer file"):
        read_trtexec(tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "words"), [(b"PK\x03\x04xx", "is a zip archive"), (b"ftrt" + bytes(9), "a TensorRT engine")]
)
def test_a_file_that_is_named_alone_and_is_no_text_is_named(tmp_path, data, words):
    (tmp_path / "run.log").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_trtexec(tmp_path / "run.log")


def test_a_plan_and_other_files_beside_the_logs_are_left_alone(tmp_path):
    (tmp_path / "net.engine").write_bytes(b"ftrt" + bytes(99))
    (tmp_path / "net.engine.build.log").write_text(BUILD)
    (tmp_path / "net.engine.notes.txt").write_text("a letter\n")
    run = read_trtexec(tmp_path / "net.engine")
    assert run.log.chosen_count == 1
    assert "net.engine.notes.txt" in run.notes[-1]
    with pytest.raises(InputError, match="none of these files is trtexec's"):
        read_trtexec(tmp_path / "net.engine.notes")


@pytest.mark.parametrize(
    ("version", "command", "expected"),
    [
        ("8601", "--onnx=n.onnx", (True, False, False)),
        ("8601", "--onnx=n.onnx --noDataTransfers --useCudaGraph --useSpinWait", (False, True, True)),
        ("101601", "--onnx=n.onnx --useCudaGraph", (True, True, False)),
        ("110100", "--onnx=n.onnx", (False, True, True)),
        ("110100", "--onnx=n.onnx --includeDataTransfers --noCudaGraph --noSpinWait", (True, False, False)),
    ],
)
def test_without_a_list_of_options_the_command_line_tells_what_was_timed(version, command, expected):
    toggles = read("", version=version, command=command).command_toggles
    assert (toggles.transfers, toggles.graph, toggles.spin) == expected


def test_without_command_and_options_nothing_tells_what_was_timed(tmp_path):
    (tmp_path / "tail.log").write_text(
        "[I] TensorRT version: 8.6.1\n[I] GPU Compute Time: min = 1 ms, max = 3 ms, mean = 2 ms, median = 2 ms\n"
    )
    run = read_trtexec(tmp_path / "tail.log")
    assert run.version == "8.6.1"
    assert run.toggles.words() == "data transfers not known, CUDA graph not known, spin wait not known"


@pytest.mark.parametrize(
    ("command", "option", "precision"),
    [
        ("--onnx=n.onnx --fp16", "", "FP32+FP16"),
        ("--onnx=n.onnx --fp16 --int8", "", "FP32+FP16+INT8"),
        ("--onnx=n.onnx", "", ""),
        ("--onnx=n.onnx --best", "", ""),
        ("--onnx=n.onnx --fp16", "[I] Precision: FP32\n", "FP32"),
        ("--onnx=n.onnx --stronglyTyped", "[I] Precision: Strongly Typed\n", ""),
        ("--onnx=n.onnx", "[I] Precision: FP32+FP16+INT8 (obey precision constraints)\n",
         "FP32+FP16+INT8 (obey precision constraints)"),
        ("--loadEngine=n.plan --fp16", "[I] Precision: FP32\n", ""),
    ],
)  # fmt: skip
def test_the_precision_is_what_the_builder_was_allowed_or_not_known(command, option, precision):
    assert read(option, command=command).precision == precision


@pytest.mark.parametrize(
    "one",
    [
        "[I] GPU Compute Time: min = 1 ms, max = 3 ms, mean = {0} ms, median = {0} ms\n",
        "=== Performance summary ===\nThroughput: 9 qps\n\nGPU Compute Time: min = 1 ms, max = 3 ms, mean = {0} ms, median = {0} ms\n",
        "[I] GPU Compute\n[I] min: 1 ms\n[I] max: 3 ms\n[I] mean: {0} ms\n[I] median: {0} ms\n",
    ],
)
def test_a_later_summary_in_the_same_text_does_not_replace_an_earlier_one(tmp_path, one):
    path = tmp_path / "notes.md"
    path.write_text("# Batch 1\n" + one.format(1.5) + "# Batch 4\n" + one.format(6.5))
    with pytest.raises(InputError, match="holds the times of several runs; give each run its own file"):
        read_trtexec(path)
    path.write_text(one.format(1.5) * 2)
    summary = read_trtexec(path).summary
    assert summary is not None
    assert summary.median_ms == 1.5
