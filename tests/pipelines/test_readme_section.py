"""What is somebody else's in a README.md stays, character for character."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.pipelines.readme_section import BEGIN, END, read_readme, update_text

yaml = pytest.importorskip("yaml", reason="missing: PyYAML (pip install 'nm2trt[card]')")

hub = pytest.importorskip("huggingface_hub.repocard", reason="missing: huggingface_hub")
METADATA = {"library_name": "transformers", "tags": ["nm2trt", "n-m-sparsity"]}
SECTION = "## N:M sparsity\n\n| a | b |\n|---|---|\n| 1 | 2 |"


def updated(text, section=SECTION, metadata=METADATA):
    return update_text(text, section, title="net", metadata=metadata)


def split(text):
    """(front matter's table, the rest without its section, the section): slow and plain, by lines."""
    lines = text.split("\n")
    assert lines[0].rstrip("\r") == "---"
    closing = [line.rstrip("\r \t") for line in lines].index("---", 1)
    data = yaml.safe_load("\n".join(lines[1:closing]))
    body = lines[closing + 1 :]
    marks = [line.rstrip("\r \t") for line in body]
    begin, end = marks.index(BEGIN), marks.index(END)
    return data, body[:begin], [line.rstrip("\r") for line in body[begin + 1 : end]], body[end + 1 :]


def test_a_new_card():
    data, before, section, after = split(updated(None))
    assert data == METADATA
    assert before == ["", "# net", ""]
    assert "\n".join(section) == SECTION
    assert after == [""]


# What a README is made of, so that front matters, marks and line ends of all kinds meet.
PIECES = st.sampled_from(
    [
        "---",
        "\n---\n",
        "tags: [a]",
        "license: mit",
        "a: |\n  b",
        "{x: 1}",
        "...",
        ": :",
        "# Net",
        BEGIN,
        END,
        "text",
        " ",
    ]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r", ""])
READMES = st.one_of(
    st.text(),
    st.lists(st.tuples(PIECES | st.text(max_size=5), ENDS)).map(lambda parts: "".join(a + b for a, b in parts)),
    st.builds(
        lambda keys, body, end: f"---{end}" + "".join(f"{k}: {v!r}{end}" for k, v in keys.items()) + f"---{end}{body}",
        st.dictionaries(
            st.sampled_from(["tags", "license", "model-index", "x"]), st.text("ab ", max_size=4), min_size=1
        ),
        st.text(),
        st.sampled_from(["\n", "\r\n"]),
    ),
)


@given(READMES)
def test_any_readme_keeps_every_character_or_is_refused(text):
    try:
        new = updated(text)
    except ValueError:
        return
    assert updated(new) == new, "twice is once"
    assert hub.REGEX_YAML_BLOCK.search(new), "huggingface_hub finds no front matter"
    other = updated(new, "another")
    assert updated(other) == new, "the section alone is replaced"
    added = re.compile(r'library_name: "transformers"\r?\n?|tags:(?:\r?\n|\r)- "nm2trt"(?:\r?\n|\r)- "n-m-sparsity"')
    kept = added.sub("", new)
    section = re.compile(re.escape(BEGIN) + r"[ \t]*\r?\n.*?" + re.escape(END), re.DOTALL)
    kept, count = section.subn("", kept)
    assert count == 1
    left = section.sub("", text) if BEGIN in text else text
    assert is_inside(left, kept), (text, new)


def is_inside(part, whole):
    """Whether `whole` is `part` with characters added."""
    rest = iter(whole)
    return all(char in rest for char in part)


@given(st.text())
def test_text_without_a_front_matter_is_one_piece_of_the_new_one(text):
    if re.match(r"\s*---", text) or BEGIN in text or END in text:
        return
    assert f"---\n{text}" in updated(text) or f"---\r\n{text}" in updated(text)


FRONT = "---\nlicense: mit # ours\ntags:\n- bert\nlanguage: &x [en,   de]\n---\n"


def test_keys_of_the_owner_stay_and_only_missing_ones_come():
    text = FRONT + "\n# Net\n\nWords.\n"
    data, before, _, after = split(updated(text))
    assert data == {"license": "mit", "tags": ["bert"], "language": ["en", "de"], "library_name": "transformers"}
    assert updated(text).startswith(FRONT.removesuffix("---\n"))
    assert before == ["", "# Net", "", "Words.", ""]
    assert after == [""]


def test_a_section_in_the_middle_is_replaced_where_it_is():
    text = updated(FRONT + "before\n").replace(f"{END}\n", f"{END}\nafter\n")
    assert updated(text, "new") == text.replace(SECTION, "new")


def test_line_ends_of_the_file_are_those_of_the_section():
    new = updated("---\r\nlicense: mit\r\n---\r\nwords\r\n")
    assert "\n" not in new.replace("\r\n", "")
    assert split(new)[0]["license"] == "mit"


@pytest.mark.parametrize("front", ["---\n{license: mit}\n---\n", "---\nlicense: mit\n...\n---\n"])
def test_a_front_matter_that_no_key_can_be_added_to_is_left_alone(front):
    new = updated(front + "words\n")
    assert new.startswith(front + "words\n\n" + BEGIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("---\na: [1\n---\n", "its front matter cannot be parsed: "),
        ("---\na: 2024-13-45\n---\n", "its front matter cannot be parsed: "),
        ("---\n- a\n---\n", "its front matter is no table of keys"),
        (f"{BEGIN}\nwords", "holds 1 begin and 0 end marks"),
        (f"{END}\n{BEGIN}\n", "holds 1 begin and 1 end marks"),
        (f"{BEGIN}\n{BEGIN}\n{END}\n", "holds 2 begin and 1 end marks"),
        (b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_what_cannot_take_the_section_is_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "README.md"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_readme(path)
    assert str(caught.value).startswith(str(path))
    assert "--model-card PATH" in str(caught.value)


def test_a_mark_in_a_sentence_is_no_mark():
    text = f"The line `{BEGIN}` is ours.\n"
    assert updated(text).count(text) == 1


def test_keys_are_found_as_huggingface_hub_finds_them():
    for text in (None, FRONT + "words", "words", "---\r\na: 1\r\n---  \r\nwords", "\n\n---\na: 1\n---", "---\nrule\n"):
        card = hub.ModelCard(updated(text))
        assert set(METADATA) <= set(card.data.to_dict())
        assert SECTION.replace("\n", "") in card.text.replace("\r", "").replace("\n", "")
