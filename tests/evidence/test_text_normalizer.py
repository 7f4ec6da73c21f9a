"""Whatever tools, terminals and collectors put around a log, the same is read from it."""

import io
import itertools
import json

import pytest
from helpers import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from log_wrappers import ALL, ENCODINGS, JSON_LINES, PACKINGS, PLATFORMS, PREFIXES, TERMINAL, WRAPPERS, wrap

from nm2trt.errors import InputError
from nm2trt.evidence.recognize import FileKind, recognize
from nm2trt.evidence.text import normalize, read_lines
from nm2trt.evidence.trtexec_log import read_trtexec_log

LOG = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v101401] [b48] # trtexec --onnx=net.onnx --fp16 --sparsity=enable --verbose
[09/26/2026-10:00:00] [I] === Build Options ===
[09/26/2026-10:00:00] [I] Precision: FP32+FP16
[09/26/2026-10:00:00] [I] === Inference Options ===
[09/26/2026-10:00:00] [I] Input inference shape : image=16x3x224x224
[09/26/2026-10:00:00] [I] Data transfers: Disabled
[09/26/2026-10:00:00] [I] Spin-wait: Enabled
[09/26/2026-10:00:00] [I] CUDA Graph: Enabled
[09/26/2026-10:00:00] [I] Selected Device: NVIDIA A100 80GB PCIe
[09/26/2026-10:00:01] [V] [TRT] --------------- Timing Runner: /c2/Conv + /c2/Relu (CaskConvolution[0x80000009])
[09/26/2026-10:00:01] [V] [TRT] /c2/Conv + /c2/Relu Set Tactic Name: sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x128x64 Tactic: 0x00000000000000a2
[09/26/2026-10:00:01] [V] [TRT] Tactic: 0x00000000000000a2 Time: 0.0131
[09/26/2026-10:00:02] [V] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: /c1/Conv + /c1/Relu, /c2/Conv + /c2/Relu, /blocks.3/attention/query/MatMul
[09/26/2026-10:00:02] [V] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: /c2/Conv + /c2/Relu
[09/26/2026-10:00:03] [V] [TRT] Engine Layer Information:
Layer(CaskConvolution): /c1/Conv + /c1/Relu, Tactic: 0x00000000000000a1, image (Half[16,3,224,224]) -> a (Half[16,64,112,112])
Layer(CaskConvolution): /c2/Conv + /c2/Relu, Tactic: 0x00000000000000a2, a (Half[16,64,112,112]) -> b (Half[16,64,56,56])
[09/26/2026-10:00:09] [I] === Profile (120 iterations ) ===
[09/26/2026-10:00:09] [I]    Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer
[09/26/2026-10:00:09] [I]       24.00       0.2000       0.1990      66.7   /c1/Conv + /c1/Relu
[09/26/2026-10:00:09] [I]       12.00       0.1000       0.0990      33.3   /c2/Conv + /c2/Relu
[09/26/2026-10:00:09] [I]       36.00       0.3000       0.2980     100.0   Total
[09/26/2026-10:00:09] [I]
[09/26/2026-10:00:09] [I] === Performance summary ===
[09/26/2026-10:00:09] [I] Throughput: 3210.5 qps
[09/26/2026-10:00:09] [I] GPU Compute Time: min = 0.29 ms, max = 0.42 ms, mean = 0.305 ms, median = 0.301 ms, percentile(90%) = 0.31 ms, percentile(95%) = 0.32 ms, percentile(99%) = 0.33 ms
&&&& PASSED TensorRT.trtexec [TensorRT v101401] [b48] # trtexec --onnx=net.onnx"""  # noqa: E501


QUIET = "\n".join(line for line in LOG.split("\n") if "[V]" not in line and not line.startswith("Layer("))
OLDER = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8503] # trtexec --onnx=r.onnx --fp16 --sparsity=enable --shapes=input:8x3x224x224
[05/09/2022-06:10:30] [I] === Build Options ===
[05/09/2022-06:10:30] [I] Precision: FP32+FP16
[05/09/2022-06:10:30] [I] Input inference shape: input=8x3x224x224
[05/09/2022-06:10:30] [I] Spin-wait: Disabled
[05/09/2022-06:10:30] [I] Selected Device: NVIDIA GeForce RTX 3090
[05/09/2022-06:10:31] [W] [TRT] weights.cpp:369: The model has INT64 weights, which this release does not support natively. Attempting to cast them down to INT32.
[05/09/2022-06:10:41] [I] [TRT] (Sparsity) Layers eligible for sparse math: Conv_0 + Relu_1, Conv_3 + Relu_4, Conv_5 + Relu_6, Conv_7, Conv_8 + Add_9 + Relu_10, Conv_11 + Relu_12, Gemm_121
[05/09/2022-06:10:41] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_5 + Relu_6, Conv_8 + Add_9 + Relu_10
[05/09/2022-06:10:42] [I] Engine built in 10.1935 sec.
[05/09/2022-06:10:42] [I] Created input binding for input with dimensions 8x3x224x224
[05/09/2022-06:10:45] [I] === Performance summary ===
[05/09/2022-06:10:45] [I] Throughput: 332.1 qps
[05/09/2022-06:10:45] [I] GPU Compute Time: min = 2.9 ms, max = 3.3 ms, mean = 3.0 ms, median = 2.98 ms, percentile(99%) = 3.2 ms"""  # noqa: E501
LEGACY = """\
[TensorRT] INFO: (Sparsity) Layers eligible for sparse math: Conv_0, Conv_3
[TensorRT] INFO: (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_3
[TensorRT] INFO: Detected 1 inputs and 1 output network tensors."""
LOGS = {"verbose": LOG, "quiet": QUIET, "older": OLDER, "legacy": LEGACY}


def summary_of(lines):
    """Everything that a reader takes from a log."""
    log = read_trtexec_log(lines)
    return {
        "eligible": log.build.eligible,
        "counts": (log.build.eligible_count, log.build.chosen_count),
        "layers": [(layer.name, layer.type, layer.tactic, layer.inputs, layer.outputs) for layer in log.build.layers],
        "version": log.version,
        "toggles": log.toggles,
        "gpu": log.gpu,
        "precision": log.precision,
        "shapes": dict(log.shapes),
        "compute": log.compute,
        "queries": log.queries_per_s,
        "profile": (log.layers, log.iterations),
    }


def plain():
    return summary_of(normalize(LOG.split("\n")))


def test_the_plain_log_holds_what_the_others_are_held_against():
    found = plain()
    assert found["counts"] == (3, 1)
    assert found["eligible"] == {
        "/c1/Conv + /c1/Relu": False, "/c2/Conv + /c2/Relu": True, "/blocks.3/attention/query/MatMul": False,
    }  # fmt: skip
    assert [row[:2] for row in found["layers"]] == [
        ("/c1/Conv + /c1/Relu", "CaskConvolution"), ("/c2/Conv + /c2/Relu", "CaskConvolution"),
    ]  # fmt: skip
    assert found["layers"][1][2].startswith("sm80_xmma_fprop_sparse_conv")
    assert found["shapes"] == {"image": (16, 3, 224, 224)}
    assert found["compute"].percentiles_ms == {90.0: 0.31, 95.0: 0.32, 99.0: 0.33}
    assert [layer.median_ms for layer in found["profile"][0]] == [0.199, 0.099]


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("name", ALL)
def test_each_wrapper_alone_changes_nothing(name, log):
    assert summary_of(normalize(wrap(LOGS[log], name).split("\n"))) == summary_of(normalize(LOGS[log].split("\n")))


BREAKS = {name for name in TERMINAL if "columns" in name} | {"cri"}
COLORS = {name for name in TERMINAL if "color" in name or name == "title"}


def is_real(names):
    """Whether an outer wrapper can find what an inner one left.

    Not asked for: a prefix of no known form on the pieces of a broken line, a width that counts invisible characters, a
    progress bar under another wrapper, lines that two widths broke, and a quote's mark where "->" may have been broken.
    """
    broken = [at for at, name in enumerate(names) if name in BREAKS]
    return (
        len(broken) < 2
        and not any(name in COLORS for at in broken for name in names[:at])
        and not any(name in {"stern", "basicConfig", "bare colors"} for at in broken for name in names[at + 1 :])
        # Two prefixes may be wider than the terminal.
        and not any(sum(one in PREFIXES or one in JSON_LINES for one in names[:at]) > 1 for at in broken)
        and not (broken and {"stern", "gh run view"} & set(names) and any(name in JSON_LINES for name in names))
        and not any("columns" in name and "quoted" in names[: names.index(name)] for name in names)
        and "progress bar" not in names[:-1]
        and not ("progress bar" in names and (broken or "stern" in names))
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in itertools.product(WRAPPERS, repeat=2) if is_real(pair) and pair[0] in PREFIXES],
)
def test_two_wrappers_change_nothing(first, second):
    assert summary_of(normalize(wrap(LOG, first, second).split("\n"))) == plain()


@examples(150)
@given(
    st.lists(st.sampled_from([*PREFIXES, *JSON_LINES, *TERMINAL]), max_size=3, unique=True),
    st.sampled_from(list(ENCODINGS)),
    st.lists(st.sampled_from(list(PACKINGS)), max_size=2),
)
def test_any_composition_of_wrappers_changes_nothing(tmp_path_factory, names, encoding, packings):
    assume(is_real(names) and len([name for name in names if name in PREFIXES or name in JSON_LINES]) < 3)
    data = ENCODINGS[encoding](wrap(LOG, *names) + "\n")
    for packing in packings:
        data = PACKINGS[packing](data)
    path = tmp_path_factory.mktemp("log") / "whatever.bin"
    path.write_bytes(data)
    assert recognize(path).kind is FileKind.LOG
    assert summary_of(recognize(path).lines()) == plain()


@examples(150)
@given(
    st.sampled_from(list(LOGS)),
    st.lists(st.sampled_from([*PLATFORMS, *PREFIXES, *JSON_LINES]), min_size=1, max_size=2, unique=True),
    st.sampled_from(["colors", "carriage returns", "web page", "script", ""]),
    st.sampled_from(list(ENCODINGS)),
    st.sampled_from(list(PACKINGS)),
)
def test_platforms_within_one_another_change_nothing(tmp_path_factory, log, names, last, encoding, packing):
    """As docker compose with colors within GitHub Actions, with CR LF, in UTF-16, packed by gzip."""
    text = wrap(LOGS[log], *names, *([last] if last else []))
    path = tmp_path_factory.mktemp("log") / "x"
    path.write_bytes(PACKINGS[packing](ENCODINGS[encoding](text + "\n")))
    assert summary_of(recognize(path).lines()) == summary_of(normalize(LOGS[log].split("\n")))


@pytest.mark.parametrize("log", ["quiet", "older", "legacy"])
@pytest.mark.parametrize("columns", ["80 columns", "100 columns", "152 columns"])
@pytest.mark.parametrize("prefix", ["docker compose", "github", "jenkins", "python", "buildkit", "rich", "loguru"])
def test_a_short_log_behind_a_prefix_that_a_terminal_broke(log, columns, prefix):
    """The rest of a broken line has no prefix, and few lines are as long as the terminal is wide."""
    assert summary_of(normalize(wrap(LOGS[log], prefix, columns).split("\n"))) == summary_of(
        normalize(LOGS[log].split("\n"))
    )


NAMES = [
    "Reformatting CopyNode for Input Tensor 0 to /features/features.0/features.0.0/Conv + PWN(/features.0/Clip)",
    "/layer1/layer1.0/conv1/Conv + /layer1/layer1.0/relu/Relu",
    "c2",
    "{ForeignNode[/a/b/MatMul.../c/d/Add]}",
    "3 x",
]


def name_last(header):
    rows = [
        f"{24 + i:11.2f}{0.24 + i / 100:13.4f}{0.23 + i / 100:13.4f}{10:10.1f}   {name}" for i, name in enumerate(NAMES)
    ]
    lines = ["=== Profile (100 iterations ) ===", "   Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer", *rows]
    return [f"{header}{line}" for line in (*lines, f"{120:11.2f}{1.2:13.4f}{1.15:13.4f}{100:10.1f}   Total", "")]


def name_first(header):
    width = max(map(len, NAMES)) + 2
    rows = [f"{name:>{width}}{24 + i:12.2f}{0.24 + i / 100:17.4f}{10:9.1f}" for i, name in enumerate(NAMES)]
    head = f"{'Layer':>{width}}   Time (ms)   Avg. Time (ms)   Time %"
    lines = [
        "=== Profile (100 iterations ) ===",
        head,
        *rows,
        f"{'Total':>{width}}{120:12.2f}{1.2:17.4f}{100:9.1f}",
        "",
    ]
    return [f"{header}{line}" for line in lines]


@pytest.mark.parametrize("table", [name_last, name_first])
@pytest.mark.parametrize("header", ["", "[09/26/2026-10:00:09] [I] "])
@pytest.mark.parametrize(
    "wrappers", [(), ("80 columns",), ("100 columns",), ("docker compose",), ("github", "80 columns")]
)
def test_tables_of_layer_times_keep_their_rows(table, header, wrappers):
    """All rows of the older table are equally long, so their length is no terminal's width."""
    lines = normalize(wrap("\n".join(table(header)), *wrappers).split("\n"))
    found = [(layer.name, layer.average_ms) for layer in read_trtexec_log(lines).layers]
    assert found == [(name, pytest.approx(0.24 + index / 100)) for index, name in enumerate(NAMES)]


@given(st.text(max_size=400), st.lists(st.sampled_from(list(WRAPPERS)), max_size=2))
def test_no_text_breaks_the_normalizer(text, names):
    for line in normalize(wrap(text, *names).split("\n")):
        assert "\n" not in line.text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=60))
def test_lines_end_at_line_feeds_only(text):
    """U+001E, U+000C, U+0085, U+2028 stand within metadata; `str.splitlines` would cut there."""
    lines = [f"[09/26/2026-10:00:00] [I] a{text}b", "[09/26/2026-10:00:00] [I] c"]
    assert len(list(normalize(lines))) == len(list(normalize(io.StringIO("\n".join(lines), newline="\n")))) >= 2


def test_a_record_separator_stays_in_its_line():
    (line,) = normalize(["[09/26/2026-10:00:00] [I] Metadata: [ONNX Layer: a]\x1e[ONNX Layer: b]\x85\u2028c"])
    assert line.text == "Metadata: [ONNX Layer: a]\x1e[ONNX Layer: b]\x85\u2028c"


def test_two_messages_without_a_line_feed_between_them_are_two():
    texts = [
        line.text for line in normalize(["[09/26/2026-10:00:00] [I] a line of text here [09/26/2026-10:00:01] [I] b"])
    ]
    assert texts == ["a line of text here ", "b"]


def test_two_services_of_one_compose_log_are_told_apart():
    lines = ["dense_x  | [I] a", "sparse_x | [I] b", "dense_x  | c"]
    sources = [line.source for line in normalize(lines)]
    assert sources[0] == sources[2] != sources[1]


@pytest.mark.parametrize(
    "form",
    [
        lambda line: {"_source": {"message": line}, "_id": "a"},
        lambda line: {"jsonPayload": {"message": line}},
        lambda line: {"MESSAGE": list(f"\x1b[32m{line}\x1b[0m".encode()), "_PID": "1"},
    ],
)
def test_entries_of_collectors_whose_text_is_deeper(form):
    lines = [json.dumps(form(line)) for line in LOG.split("\n")]
    assert summary_of(normalize(lines)) == plain()


def test_a_log_that_python_printed_as_bytes():
    assert summary_of(normalize(["started", repr(LOG.encode()), "done"])) == plain()


@pytest.mark.parametrize(
    "form",
    [
        lambda text: {"stdout": text, "rc": 0},
        lambda text: {"cells": [{"outputs": [{"text": text.splitlines(keepends=True)}]}]},
    ],
)
def test_a_log_within_a_notebook_or_a_tools_json(tmp_path, form):
    (tmp_path / "n.ipynb").write_text(json.dumps(form(LOG)))
    assert summary_of(recognize(tmp_path / "n.ipynb").lines()) == plain()


def test_a_log_that_was_downloaded_as_one_json_list(tmp_path):
    path = tmp_path / "entries"
    path.write_text(json.dumps([{"insertId": str(i), "textPayload": line} for i, line in enumerate(LOG.split("\n"))]))
    assert summary_of(recognize(path).lines()) == plain()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04 and so on", "is a zip archive; unpack it first"),
        (b"\x28\xb5\x2f\xfd and so on", "packed by zstd"),
        (b"\x1f\x8b\x08 no gzip at all", "cannot be unpacked"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00", "is no text: a program or library"),
        (b"ftrt\x00\x00\x00\x01\x00\x00\x00", "is no text: a TensorRT engine"),
        (b"", "is empty"),
        (b" \n\n\xef\xbb\xbf \n", "is empty"),
    ],
)
def test_what_is_no_text_is_named_in_one_line(tmp_path, data, words):
    path = tmp_path / "log.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        recognize(path)
    assert "\n" not in str(caught.value)


def test_a_torn_gzip_is_named(tmp_path):
    path = tmp_path / "log.gz"
    path.write_bytes(PACKINGS["gzip"](b"".join(b"[I] line %d\n" % i for i in range(9999)))[:-2000])
    with pytest.raises(InputError, match="cannot be unpacked to its end"):
        list(read_lines(path))
