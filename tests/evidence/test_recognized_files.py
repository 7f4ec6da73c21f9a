"""Content decides what a file is; broken JSON costs one line that says what happened."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_wrappers import ENCODINGS, PACKINGS, wrap

from nm2trt.errors import InputError
from nm2trt.evidence import read_inspection, read_log
from nm2trt.evidence.recognize import FileKind, load_json, recognize, restore_backslashes

CONV = {"Name": "conv1", "LayerType": "CaskConvolution", "HasSparseWeights": 1, "Weights": {"Type": "Half", "Count": 9}}
FILES = {
    FileKind.LAYERS: {"Layers": [CONV], "Bindings": ["x"]},
    FileKind.PROFILE: [{"count": 7}, {"name": "conv1", "averageMs": 0.1, "medianMs": 0.1}],
    FileKind.TIMES: [{"startEnqMs": 0, "endEnqMs": 1, "computeMs": 1.0}],
    FileKind.OUTPUT: [{"name": "y", "dimensions": "1x2", "values": [0.1, 0.2]}],
    FileKind.DEVICES: [{"Name": "NVIDIA A100", "COMPUTE_CAPABILITY_MAJOR": 8}],
    FileKind.RECORD: {"inference_options": {"Batch": "Explicit"}},
    FileKind.SUMMARY: {"computeMs": {"median": 1.0}},
    FileKind.OTHER_JSON: {"schema": "nm2trt.build/1"},
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["f.json", "f.log", "f.txt", "f.profile", "f"])
def test_the_suffix_decides_nothing(tmp_path, kind, name):
    (tmp_path / name).write_text(json.dumps(FILES[kind]))
    assert recognize(tmp_path / name).kind is kind


@given(
    st.sampled_from(list(FILES)),
    st.sampled_from(list(ENCODINGS)),
    st.sampled_from(list(PACKINGS)),
    st.sampled_from([None, 1]),
    st.sampled_from([(), ("docker compose",), ("github",), ("colors",), ("docker json-file",), ("80 columns",)]),
)
def test_json_is_read_through_encodings_packings_and_prefixes(tmp_path_factory, kind, encoding, packing, indent, names):
    text = wrap(json.dumps(FILES[kind], indent=indent), *names)
    path = tmp_path_factory.mktemp("json") / "x"
    path.write_bytes(PACKINGS[packing](ENCODINGS[encoding](text)))
    content = recognize(path)
    assert (content.kind, content.raw) == (kind, FILES[kind])


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind is not FileKind.LAYERS])
def test_another_file_is_refused_by_what_it_is(tmp_path, kind):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(FILES[kind]))
    with pytest.raises(InputError, match="not a layer file") as caught:
        read_inspection(path)
    assert recognize(path).words in str(caught.value)
    with pytest.raises(InputError, match="not a log"):
        read_log(path)


def test_a_layer_file_is_no_log_and_a_text_is_neither(tmp_path):
    (tmp_path / "a.log").write_text(json.dumps(FILES[FileKind.LAYERS]))
    with pytest.raises(InputError, match="give it with --layers"):
        read_log(tmp_path / "a.log")
    (tmp_path / "b.log").write_text("A letter about TensorRT,\nand sparse layers.\n")
    with pytest.raises(InputError, match="a text without a line of TensorRT"):
        read_log(tmp_path / "b.log")
    with pytest.raises(InputError, match="not a layer file"):
        read_inspection(tmp_path / "b.log")


@pytest.mark.parametrize(
    "form",
    [
        lambda layers: json.dumps(layers),
        lambda layers: json.dumps([json.dumps(layer) for layer in layers]),
        lambda layers: json.dumps(json.dumps({"Layers": layers})),
        lambda layers: "\n".join(json.dumps(layer) for layer in layers),
        lambda layers: "\n".join(json.dumps(layer, indent=2) for layer in layers) + "\n",
        lambda layers: ",\n".join(json.dumps(layer) for layer in layers),
    ],
)
def test_the_inspectors_layers_however_a_script_wrote_them(tmp_path, form):
    path = tmp_path / "layers"
    path.write_text(form([CONV | {"Name": f"conv{index}"} for index in range(3)]))
    found = read_inspection(path)
    assert [layer.name for layer in found.layers] == ["conv0", "conv1", "conv2"]
    assert all(layer.has_sparse_weights for layer in found.layers)


def test_one_layer_alone_is_a_layer_file(tmp_path):
    path = tmp_path / "layer"
    path.write_text(json.dumps(CONV))
    assert [layer.name for layer in read_inspection(path).layers] == ["conv1"]


def test_documents_of_other_kinds_behind_one_another_are_no_layers(tmp_path):
    path = tmp_path / "both"
    path.write_text(json.dumps(CONV) + "\n" + json.dumps({"a": 1}))
    with pytest.raises(InputError, match="holds more than one JSON document"):
        recognize(path)


def test_lines_of_a_log_in_a_list_without_line_feeds_are_lines(tmp_path):
    path = tmp_path / "result.json"
    lines = ["&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=n.onnx",
             "[I] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: a, b",
             "[I] [TRT] (Sparsity) Chose 0 layer(s) using sparse tactics:, a"]  # fmt: skip
    path.write_text(json.dumps({"format": "trt_fp16", "meta": {"sparsity_lines": lines}}))
    assert read_log(path).eligible == {"a": True, "b": False}


def test_layers_within_a_log_are_read_as_layers(tmp_path):
    path = tmp_path / "both.txt"
    layers = json.dumps(FILES[FileKind.LAYERS])
    path.write_text(f"[09/26/2026-10:00:00] [I] Layer Information:\n{layers}\n[09/26/2026-10:00:01] [I] x\n")
    (layer,) = read_inspection(path).layers
    assert (layer.name, layer.has_sparse_weights) == ("conv1", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n\ufeff\n", "is empty"),
        ('[{"count": 5}, {"name": "a", "averageMs": 0.1}, {"na', "is cut off at line 1"),
        ('{"Layers": [\n{"Name": "a", "LayerType": "Cask', "is cut off at line 2"),
        ('{"Layers": ["a"]}\n{"Layers": ["b"]}', "more than one JSON document"),
        ('[{"computeMs": 1.0}][{"computeMs": 1.0}]', "more than one JSON document"),
        ('[{"computeMs" 1.0}]', "no readable JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json_says_what_happened(text, words):
    with pytest.raises(InputError, match=words) as caught:
        load_json(text, "f.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"a": 1},]', [{"a": 1}]),
        ('{"a": [1, 2, ], "b": 3 ,\n}', {"a": [1, 2], "b": 3}),
        (r'{"a": "C:\models\x"}', {"a": r"C:\models\x"}),
        ("\ufeff[1]", [1]),
    ],
)
def test_what_tools_write_wrongly_is_read(text, value):
    assert load_json(text, "f.json")[0] == value


@pytest.mark.parametrize("word", ["nan", "-nan", "NaN", "-nan(ind)", "inf", "-inf", "Infinity"])
def test_a_number_that_is_none_is_read_and_said(word):
    raw, notes = load_json(f'[{{"averageMs": {word}, "name": "a nan, b"}}]', "f.json")
    assert raw[0]["averageMs"] != raw[0]["averageMs"] or abs(raw[0]["averageMs"]) == float("inf")
    assert raw[0]["name"] == "a nan, b"
    assert notes == ("1 values are nan or inf",)


def test_backslashes_that_were_not_escaped_come_back():
    raw, _ = load_json(r'[{"name": "C:\temp\new"}]', "f.json")
    assert restore_backslashes(raw[0]["name"]) == r"C:\temp\new"


@given(st.text(max_size=80))
def test_no_text_breaks_the_recognizer(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        recognize(path)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=80))
def test_no_bytes_break_the_recognizer(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x"
    path.write_bytes(data)
    try:
        recognize(path)
    except InputError as error:
        assert "\n" not in str(error)
