"""`nm2trt verify --model-card`, read back by huggingface_hub, by line, and by the command that it names."""

import hashlib
import json
import shlex

import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from nm2trt.pipelines.model_card import write_model_card
from nm2trt.pipelines.readme_section import BEGIN, END
from nm2trt.pipelines.verify import verify_file
from nm2trt.verify.verify_schema import VerifyDocument


def sparse(rows, columns, seed=0):
    """2:4 by hand: the first two of every four are zero."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    weight[:, 0::4] = weight[:, 1::4] = 0
    return weight


@pytest.fixture
def folder(tmp_path):
    """Two layers, one of them 2:4."""
    path = tmp_path / "net"
    path.mkdir()
    dense = np.ones((8, 16), np.float32)
    save_file({"a.weight": sparse(16, 16), "b.weight": dense, "b.bias": dense[0]}, path / "model.safetensors")
    return path


def document_in(card):
    """The verify document in a card, read as a document."""
    return VerifyDocument.model_validate_json(card.partition("```json\n")[2].partition("\n```")[0])


def rows_of(card, first):
    """Cells of the table whose first heading is `first`."""
    lines = card.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_card_holds_what_verify_prints(folder):
    result = nm2trt_inline("verify", folder, "--model-card", "--json")
    assert result.returncode == 0, result.stderr
    card = (folder / "README.md").read_text()
    printed, held = json.loads(result.stdout), document_in(card).model_dump(mode="json", by_alias=True)
    for layer in printed["layers"]:
        layer["hint"] = ""
    assert held["layers"] == printed["layers"]
    assert held["totals"] == printed["totals"]
    assert [row[:5] for row in rows_of(card, "layer")] == [
        ["`a.weight`", "16x16", "2:4", "conforms", "0.500"],
        ["`b.weight`", "8x16", "2:4", "dense", "1.000"],
    ]
    content = (folder / "model.safetensors").read_bytes()
    assert rows_of(card, "file") == [
        ["`model.safetensors`", f"{len(content):,}", f"`{hashlib.sha256(content).hexdigest()}`"]
    ]
    assert str(folder.parent) not in card


def test_the_four_facts_are_never_mixed(folder):
    write_model_card(folder, verify_file(folder))
    facts = dict(rows_of((folder / "README.md").read_text(), "fact"))
    assert facts["legal pattern"] == "of 2 prunable layers 1 hold 2:4, 66.7% of their weights"
    assert facts["eligible"].startswith("1 layers: ")
    assert facts["sparse kernel chosen"].startswith("not known from a file: ")
    assert facts["faster"].startswith("not known from a file: ")


def test_the_line_in_the_card_checks_again(folder):
    options = ["--pattern", "2:8", "--layer", "a.*=2:4", "--exclude", "b*", "--require", "a.weight", "--strict"]
    result = nm2trt_inline("verify", folder, *options, "--model-card")
    assert result.returncode == 0, result.stderr
    card = (folder / "README.md").read_text()
    (line,) = [line.strip() for line in card.splitlines() if line.startswith("    nm2trt ")]
    again = nm2trt(*shlex.split(line)[1:], "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["totals"] == document_in(card).model_dump(mode="json")["totals"]


def test_twice_is_once_and_words_of_the_owner_stay(folder):
    own = b"---\nlicense: mit # ours\n---\n\n# Net\n\nWords, and \xc3\xa9.\n"
    (folder / "README.md").write_bytes(own)
    nm2trt_inline("verify", folder, "--model-card")
    once = (folder / "README.md").read_bytes()
    nm2trt_inline("verify", folder, "--model-card")
    assert (folder / "README.md").read_bytes() == once
    assert once.startswith(b"---\nlicense: mit # ours\n")
    assert b"\n---\n\n# Net\n\nWords, and \xc3\xa9.\n\n" + BEGIN.encode() in once
    save_file({"a.weight": np.ones((16, 16), np.float32)}, folder / "model.safetensors")
    assert nm2trt_inline("verify", folder, "--model-card").returncode == 1
    third = (folder / "README.md").read_text()
    assert "**fail**" in third
    assert "**pass**" not in third
    assert third.partition(BEGIN)[0] == once.decode().partition(BEGIN)[0]


def test_a_card_that_cannot_be_read_is_left_alone_and_refused_before_the_work(folder):
    (folder / "README.md").write_text("---\na: [1\n---\nwords\n")
    (folder / "model.safetensors").write_bytes(b"no weights")
    result = nm2trt_inline("verify", folder, "--model-card")
    assert_one_error_line(result, 3, "README.md: its front matter cannot be parsed: ", "--model-card PATH")
    assert (folder / "README.md").read_text() == "---\na: [1\n---\nwords\n"


def test_wrong_places(folder, tmp_path):
    file = folder / "model.safetensors"
    for arguments, words in (
        ([file, "--model-card"], "a file has no card of its own"),
        ([folder, "--model-card", tmp_path / "card.txt"], "is no .md file"),
        ([folder, "--model-card", tmp_path / "gone" / "card.md"], "parent directory does not exist"),
        ([folder, file, "--model-card"], "is of one PATH, not 2"),
    ):
        assert_one_error_line(nm2trt_inline("verify", *arguments), 2, "--model-card", words)
    assert_one_error_line(nm2trt_inline("verify", tmp_path / "gone", "--model-card"), 3, "no such file or folder")
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors"]


def test_a_card_elsewhere_names_the_file_and_no_path(folder, tmp_path):
    card = tmp_path / "cards" / "net.md"
    card.parent.mkdir()
    nm2trt_inline("verify", folder / "model.safetensors", "--model-card", card)
    text = card.read_text()
    assert "    nm2trt verify model.safetensors\n" in text
    assert str(tmp_path) not in text
    nm2trt_inline("verify", folder, "--model-card", card.parent)
    assert "    nm2trt verify net\n" in (card.parent / "README.md").read_text()


def test_names_in_the_file_cannot_end_the_section_or_the_table(tmp_path):
    names = [f"x\n{END}\n.weight", "a|b.weight", "```.weight", "<b>.weight"]
    save_file({name: sparse(8, 8) for name in names}, tmp_path / "model.safetensors")
    for _ in range(2):
        write_model_card(tmp_path, verify_file(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert card.splitlines().count(END) == 1
    assert {layer.name for layer in document_in(card).layers} == set(names)
    assert [len(row) for row in rows_of(card, "layer")] == [6] * 4
    assert "<b>" not in card


def test_every_file_of_the_weights_is_hashed(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    weight_map = {}
    for index in (1, 2):
        name = f"model-{index}.safetensors"
        save_file({f"l{index}.weight": sparse(8, 8, seed=index)}, shards / name)
        weight_map[f"l{index}.weight"] = name
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "g",
        [helper.make_tensor_value_info("x", 1, [1, 64])], [helper.make_tensor_value_info("y", 1, [1, 64])],
        [numpy_helper.from_array(sparse(64, 64), "w")],
    )  # fmt: skip
    build = tmp_path / "build"
    build.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, build / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    for folder, names in (
        (shards, ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"]),
        (build, ["model.onnx", "model.data"]),
    ):
        write_model_card(folder, verify_file(folder))
        rows = rows_of((folder / "README.md").read_text(), "file")
        expected = [(name, (folder / name).read_bytes()) for name in names]
        assert [(row[0], row[2]) for row in rows] == [
            (f"`{name}`", f"`{hashlib.sha256(content).hexdigest()}`") for name, content in expected
        ]


def test_a_folder_that_from_pretrained_loads(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="missing: transformers (pip install 'nm2trt[huggingface]')"
    )
    hub = pytest.importorskip("huggingface_hub", reason="missing: huggingface_hub")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=64, max_position_embeddings=16, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    file = tmp_path / "bert/model.safetensors"
    tensors = load_file(file)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tensors[name] = sparse(64, 32)
    save_file(tensors, file, metadata={"format": "pt"})
    result = nm2trt("verify", tmp_path / "bert", "--model-card")
    assert result.returncode == 0, result.stderr
    card = hub.ModelCard.load(tmp_path / "bert/README.md")
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["nm2trt", "n-m-sparsity"]}
    verdicts = {row[0].strip("`"): row[3] for row in rows_of(card.text, "layer")}
    assert verdicts.pop(name) == "conforms"
    assert set(verdicts.values()) == {"dense"}
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "bert")
    assert np.array_equal(loaded.state_dict()[name].numpy(), tensors[name])
    card.data.license = "mit"
    card.save(tmp_path / "bert/README.md")
    assert nm2trt("verify", tmp_path / "bert", "--model-card").returncode == 0
    again = hub.ModelCard.load(tmp_path / "bert/README.md")
    assert again.data.to_dict() == card.data.to_dict()
    assert again.text == card.text
