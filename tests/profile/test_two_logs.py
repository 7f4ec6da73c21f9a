"""Two plain logs of trtexec as a comparison: what they show, and what makes them no pair."""

import json

import pytest
from helpers import assert_one_error_line, nm2trt_inline

from nm2trt.artifacts import FactState, ReportDocument
from nm2trt.errors import InputError
from nm2trt.profile.importers.trtexec import TrtexecPaths, import_trtexec
from nm2trt.report.profile_page import profile_page

LOG = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --onnx=net.onnx --fp16 --sparsity=enable
[07/28/2026-08:45:30] [I] Precision: {precision}
[07/28/2026-08:45:30] [I] Input inference shape: image={batch}x3x224x224
[07/28/2026-08:45:30] [I] Data transfers: Enabled
[07/28/2026-08:45:30] [I] Spin-wait: Disabled
[07/28/2026-08:45:30] [I] CUDA Graph: {graph}
[07/28/2026-08:45:30] [I] Selected Device: {gpu}
[07/28/2026-08:45:30] [I] SMs: 108
{sparsity}\
[07/28/2026-08:45:44] [I] Timing trace has 1498 queries over 3.0 s
[07/28/2026-08:45:44] [I] === Performance summary ===
[07/28/2026-08:45:44] [I] Throughput: {qps} qps
[07/28/2026-08:45:44] [I] Latency: min = 2.4 ms, max = 3.2 ms, mean = 2.5 ms, median = 2.4 ms, percentile(99%) = 2.6 ms
[07/28/2026-08:45:44] [I] Enqueue Time: min = 0.1 ms, max = 0.2 ms, mean = 0.15 ms, median = 0.14 ms
[07/28/2026-08:45:44] [I] GPU Compute Time: min = 1 ms, max = 3 ms, {percentiles}
"""
SPARSITY = """\
[07/28/2026-08:45:40] [I] [TRT] (Sparsity) Layers eligible for sparse math: c1, c2, c3
[07/28/2026-08:45:40] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: c2
"""
USUAL = {"version": "8601", "precision": "FP32+FP16", "batch": 32, "graph": "Disabled", "gpu": "NVIDIA A100 80GB PCIe",
         "sparsity": "", "qps": 480.5, "median": 2.2,
         "percentiles": "mean = {median} ms, median = {median} ms, "
         "percentile(90%) = 2.5 ms, percentile(95%) = 2.6 ms, percentile(99%) = 2.7 ms"}  # fmt: skip


def write(path, **changes):
    values = USUAL | changes
    path.write_text(LOG.format(**values | {"percentiles": values["percentiles"].format(**values)}))
    return path


def pair(folder, **changes):
    dense = write(folder / "dense.log")
    return TrtexecPaths(
        dense=dense, sparse=write(folder / "sparse.log", **{"median": 2.0, "sparsity": SPARSITY} | changes)
    )


def test_two_runs_no_interval_no_verdict(tmp_path):
    report = import_trtexec(pair(tmp_path))
    (batch,) = report.batches
    assert (batch.batch, batch.finding, batch.rounds) == (32, "unpaired", 0)
    assert batch.ratio.value == pytest.approx(1.1)
    assert (batch.ratio.low, batch.ratio.high) == (0.0, float("inf"))
    assert "1.10x" in batch.sentence
    assert "two runs, no interval, so no verdict" in batch.sentence
    assert "1 of 3 eligible layers run sparse kernels" in batch.sentence
    dense, _ = batch.variants
    assert (dense.median_ms, dense.p90_ms, dense.p99_ms, dense.calls) == (2.2, 2.5, 2.7, 1498)
    assert (dense.quantiles_ms, dense.coefficient_of_variation) == ((), None)
    assert dense.throughput_per_s == pytest.approx(480.5 * 32)
    assert (dense.with_transfers.median_ms, dense.with_transfers.p99_ms, dense.enqueue_ms) == (2.4, 2.6, 0.14)
    assert report.facts.faster.state.value == "unknown"
    assert report.facts.chosen.state.value == "proved"
    again = ReportDocument.model_validate_json(report.to_json())
    assert again.batches[0].ratio.high == float("inf")
    assert "1.10x" in profile_page(report)


def test_without_a_sparsity_line_nothing_is_said_of_kernels(tmp_path):
    report = import_trtexec(pair(tmp_path, sparsity=""))
    assert "whether 2:4 kernels ran was not observed" in report.headline
    assert report.facts.chosen.state.value == "unknown"


def test_the_page_shows_no_interval_where_there_is_none(tmp_path):
    page = profile_page(import_trtexec(pair(tmp_path)))
    assert "no interval" in page
    assert "inf]" not in page


def test_a_second_sparse_run_is_said_and_gives_no_verdict(tmp_path):
    paths = pair(tmp_path)
    again = write(tmp_path / "again.log", median=2.05)
    report = import_trtexec(TrtexecPaths(dense=paths.dense, sparse=paths.sparse, again=again))
    assert "the second sparse run differs from the first by 2.5 %" in report.headline
    assert report.batches[0].finding == "unpaired"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 16}, "input shapes: image=32x3x224x224 in the dense run, image=16x3x224x224 in the sparse run"),
        ({"precision": "FP32+FP16+INT8"}, "precision: FP32+FP16 in the dense run, FP32+FP16+INT8 in the sparse run"),
        ({"version": "100300"}, "TensorRT: 8.6.1 in the dense run, 10.3.0 in the sparse run"),
        ({"gpu": "NVIDIA A40"}, "GPU: NVIDIA A100 80GB PCIe in the dense run, NVIDIA A40 in the sparse run"),
        ({"graph": "Enabled"}, "CUDA graph: off in the dense run, on in the sparse run"),
    ],
)
def test_runs_that_differ_in_more_than_the_engine_are_refused(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        import_trtexec(pair(tmp_path, **changes))
    assert words in str(caught.value)


def test_runs_with_other_numbers_of_streams_are_refused(tmp_path):
    paths = pair(tmp_path)
    for path, key, count in ((paths.dense, "Streams", 1), (paths.sparse, "Inference Streams", 4)):
        path.write_text(
            path.read_text().replace(
                "[07/28/2026-08:45:30] [I] SMs",
                f"[07/28/2026-08:45:30] [I] {key}: {count}\n[07/28/2026-08:45:30] [I] SMs",
            )
        )
    with pytest.raises(InputError, match="inference streams: 1 in the dense run, 4 in the sparse run"):
        import_trtexec(paths)


def test_strongly_typed_runs_do_not_tell_their_precision(tmp_path):
    changes = {"precision": "Strongly Typed"}
    paths = TrtexecPaths(dense=write(tmp_path / "d.log", **changes), sparse=write(tmp_path / "s.log", **changes))
    paths.dense.write_text(paths.dense.read_text().replace("--fp16 ", "--stronglyTyped "))
    report = import_trtexec(paths)
    assert report.precision == "precision not known"
    assert any("No file tells precision (dense, sparse)" in note for note in report.notes)


def test_times_of_zero_are_no_times(tmp_path):
    report = import_trtexec(pair(tmp_path, median=0))
    assert report.batches == []
    assert report.headline == "Nothing could be compared: no file tells times of the sparse run."


def test_a_log_without_a_summary_is_named(tmp_path):
    paths = pair(tmp_path)
    assert paths.dense is not None
    text = paths.dense.read_text()
    paths.dense.write_text(text[: text.index("[07/28/2026-08:45:44] [I] Timing trace")])
    report = import_trtexec(paths)
    assert report.batches == []
    assert report.headline == "Nothing could be compared: no file tells times of the dense run."


def test_a_batch_that_contradicts_the_files_is_said(tmp_path):
    assert any("tell batch 32; batch 4 was given" in note for note in import_trtexec(pair(tmp_path), batch=4).notes)
    assert not any("was given and is taken" in note for note in import_trtexec(pair(tmp_path), batch=32).notes)


def test_inputs_that_only_one_log_tells_are_said(tmp_path):
    paths = pair(tmp_path)
    line = "[07/28/2026-08:45:30] [I] Input inference shape: mask=32x128\n"
    paths.sparse.write_text(paths.sparse.read_text().replace("[07/28/2026-08:45:30] [I] Data", f"{line}[I] Data"))
    assert any("different inputs (image and image, mask)" in note for note in import_trtexec(paths).notes)


def test_another_patch_release_is_said(tmp_path):
    report = import_trtexec(pair(tmp_path, version="8603"))
    assert any("8.6.1 and 8.6.3" in note for note in report.notes)


def test_what_no_file_tells_is_said(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(
            "[I] Input inference shape: x=4x3\n[I] GPU Compute Time: mean = 1 ms, median = 1 ms\n"
        )
    for name in ("a", "b"):
        text = (tmp_path / name).read_text().replace("mean", "min = 1 ms, mean")
        (tmp_path / name).write_text(text)
    report = import_trtexec(TrtexecPaths(dense=tmp_path / "a", sparse=tmp_path / "b"))
    (note,) = [note for note in report.notes if note.startswith("No file tells")]
    assert "precision (dense, sparse)" in note
    assert "GPU (dense, sparse)" in note
    assert report.precision == "precision not known"


def test_all_inputs_count(tmp_path):
    for name, mask in (("dense.log", 128), ("sparse.log", 64)):
        text = write(tmp_path / name).read_text().replace("image=32x3x224x224", "ids=32x128")
        second = f"[07/28/2026-08:45:30] [I] Input inference shape: mask=32x{mask}\n"
        (tmp_path / name).write_text(
            text.replace("[07/28/2026-08:45:30] [I] Data", f"{second}[07/28/2026-08:45:30] [I] Data")
        )
    with pytest.raises(InputError, match="mask=32x128 in the dense run, ids=32x128, mask=32x64 in the sparse run"):
        import_trtexec(TrtexecPaths(dense=tmp_path / "dense.log", sparse=tmp_path / "sparse.log"))


def test_means_are_compared_with_means(tmp_path):
    profile = [{"count": 10}, {"name": "c", "timeMs": 2, "averageMs": 0.2}]
    (tmp_path / "dense.json").write_text(json.dumps(profile))
    profile[1]["medianMs"] = 0.1
    (tmp_path / "sparse.json").write_text(json.dumps(profile))
    report = import_trtexec(TrtexecPaths(dense=tmp_path / "dense", sparse=tmp_path / "sparse"), batch=1)
    assert report.layers.layers[0].ratio.value == pytest.approx(1.0)
    assert any("compared by means" in note for note in report.notes)


def layer_files(folder, prefix, names, *, sparse=()):
    kernels = ("sm80_xmma_fprop_implicit_gemm_f16f16", "sm80_xmma_fprop_sparse_conv_f16f16")
    layers = [
        {"Name": name, "LayerType": "CaskConvolution", "HasSparseWeights": 1, "TacticName": kernels[name in sparse],
         "Weights": {"Type": "Half", "Count": 9}}
        for name in names
    ]  # fmt: skip
    profile = [{"count": 5}, *({"name": name, "averageMs": 0.2, "medianMs": 0.2} for name in names)]
    (folder / f"{prefix}.layers").write_text(json.dumps({"Layers": layers}))
    (folder / f"{prefix}.profile").write_text(json.dumps(profile))
    return folder / prefix


def test_engines_whose_names_do_not_match_are_not_added_up(tmp_path):
    dense = layer_files(tmp_path, "dense", ["Conv_0", "Conv_2"])
    sparse = layer_files(tmp_path, "sparse", ["Conv_4", "Conv_6"], sparse=["Conv_6"])
    layers = import_trtexec(TrtexecPaths(dense=dense, sparse=sparse), batch=1).layers
    assert (layers.weighted, layers.chosen, layers.matched) == (2, 1, 0)
    assert "1 of 2 layers with weights run sparse kernels" in layers.sentence
    assert "no layer of the dense run could be matched" in layers.sentence
    assert sum(row.share for row in layers.layers) == pytest.approx(1.0)


def test_a_part_that_does_not_match_is_counted(tmp_path):
    dense = layer_files(tmp_path, "dense", ["a", "b"])
    sparse = layer_files(tmp_path, "sparse", ["a", "c"], sparse=["a"])
    layers = import_trtexec(TrtexecPaths(dense=dense, sparse=sparse), batch=1).layers
    assert (layers.weighted, layers.matched) == (2, 1)
    assert "1 of them have no counterpart in the dense run" in layers.sentence


def test_layers_that_hide_their_weights_are_in_no_count(tmp_path):
    for name, speed in (("dense", 1.0), ("sparse", 1.2)):
        layers = [
            {
                "Name": "conv",
                "LayerType": "CaskConvolution",
                "HasSparseWeights": 1,
                "TacticName": "sm80_xmma_fprop_gemm",
            },
            {"Name": "{ForeignNode[fc1...fc3]}", "LayerType": "Myelin"},
            {"Name": "pool", "LayerType": "CaskPooling", "TacticName": "sm80_xmma_pooling"},
        ]
        times = [{"name": layer["Name"], "averageMs": 0.1, "medianMs": 0.1 / speed} for layer in layers]
        (tmp_path / f"{name}.layers.json").write_text(json.dumps({"Layers": layers}))
        (tmp_path / f"{name}.profile.json").write_text(json.dumps([{"count": 9}, *times]))
    report = import_trtexec(TrtexecPaths(dense=tmp_path / "dense", sparse=tmp_path / "sparse"), batch=1)
    assert report.layers is not None
    assert (report.layers.weighted, report.layers.weights_unknown, report.layers.chosen) == (1, 1, 0)
    assert "none of 1 layers with weights runs a sparse kernel (1 more do not show" in report.layers.sentence
    assert report.facts.chosen.state == FactState.UNKNOWN
    alone = import_trtexec(TrtexecPaths(sparse=tmp_path / "sparse.profile.json"), batch=1).layers
    assert alone is not None
    assert (alone.weighted, alone.weights_unknown) == (0, 3)
    assert "which layers have weights is not known" in alone.sentence


def test_the_command_takes_two_logs_dense_first(tmp_path):
    paths = pair(tmp_path)
    result = nm2trt_inline("profile", paths.dense, paths.sparse, "-o", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    for wanted in ("sparse.log against dense.log", "1.10x", "two runs, no interval", "batch 32", "2.7"):
        assert wanted in result.stdout
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert document["batches"][0]["ratio"] == {"value": pytest.approx(1.1), "low": 0.0, "high": None}
    alone = nm2trt_inline("profile", paths.sparse, "-o", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    assert "One engine was given (sparse), so nothing is compared. GPU compute median 2 ms." in alone.stdout
    compared = nm2trt_inline("compare", tmp_path / "r", tmp_path / "r", "--json")
    assert "(no interval)" in compared.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a.log", "b.log", "c.log"), 2, "3 arguments"),
        (("a.log", "b.log", "--trtexec-sparse", "c"), 2, "exclude each other"),
        (("a.log", "net.onnx"), 2, "give the dense network with --dense"),
        (("a.log", "missing.log"), 3, "no file of trtexec there"),
        (("a.log", "text.log"), 3, "a text without a line of TensorRT or trtexec"),
        (("a.log", "broken.json"), 3, "is cut off at line 1"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    for name in ("a.log", "b.log", "c.log"):
        write(tmp_path / name)
    (tmp_path / "text.log").write_text("a letter\n")
    (tmp_path / "broken.json").write_text('[{"count": 5}, {"na')
    assert_one_error_line(nm2trt_inline("profile", *arguments, "-o", "r"), code, words)
