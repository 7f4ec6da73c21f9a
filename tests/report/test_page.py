"""The page as a parser and a browser see it."""

import html
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from matplotlib.image import imread
from profile_reports import EVIL, batch_record, report_document
from small_networks import build_document, fact, small_network

from nm2trt.artifacts import Facts
from nm2trt.report import Badge, Callout, Commands, Drawing, KeyFigure, KeyFigures, Prose, Section, Table, render_page
from nm2trt.report.curves import curves_svg
from nm2trt.report.profile_page import profile_page
from nm2trt.report.sections import build_section, commands_section, facts_section, layers_section

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page():
    return profile_page(report_document())


def everything(tmp_path):
    """A page with every block there is, and with long unbreakable names."""
    path = tmp_path / "model.onnx"
    onnx.save(small_network(), path)
    build = build_document(path, name="a_module_with_a_very_long_name." * 4)
    metrics = [{"kind": "epoch", "step": 9, "train_loss": 1.0, "test_loss": 1.0, "test_score": 0.9}]
    sad = [{"step": step, "layer": "conv", "sad_previous_normalized": 0.1} for step in (1, 2)]
    sections = (
        Section("Training", (Drawing(curves_svg(metrics, sad), "Curves."), Prose("Words. " * 40))),
        layers_section(build.pattern),
        build_section(build),
        facts_section(build.facts),
        commands_section(("nm2trt demo -o " + "x" * 200,)),
        Section("Numbers", (KeyFigures((KeyFigure("97.8 %", "accuracy", "test"),) * 5), Callout("Look.", "bad"))),
    )
    figures = [KeyFigure("1.000x", "ratio", "[0.99, 1.01]"), KeyFigure("12,345", "samples/s")] * 3
    return render_page("All of it", "m" * 120, sections, headline="H " * 60, key_figures=figures, created_utc="now")


def test_one_file_that_needs_nothing_else(page, tmp_path):
    for text in (page, everything(tmp_path)):
        reader = Reader(text)
        assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
        for tag, name, value in reader.attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
        assert not re.search(r"https?:|@import|url\((?!#)", text)
        ids = [value for _, name, value in reader.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        targets = {value[1:] for _, name, value in reader.attributes if name == "href" and value.startswith("#")}
        assert targets <= set(ids)


def test_what_a_reader_came_for_is_there(page):
    text = " ".join(Reader(page).text)
    report = report_document()
    for wanted in (
        report.headline,
        report.runner.note,
        report.dense.note,
        report.command,
        "1.020x",
        "Sparse kernel chosen",
        "disproved",
        report.host.processor,
        "filled",
    ):
        assert wanted in text, wanted


def test_names_are_text_wherever_they_appear():
    facts = Facts(**{name: fact("unknown", EVIL) for name in ("legal", "eligible", "chosen", "faster")})
    layers = {"source": EVIL, "pattern": EVIL, "layers": [{"name": EVIL, "op": EVIL, "verdict": EVIL, "shape": [EVIL]}]}
    curves = curves_svg([], [{"step": 1, "layer": EVIL, "sad_previous_normalized": 0.1}])
    sections = (
        Section(EVIL, (Prose(EVIL), Callout(EVIL), Commands((EVIL,)), Table((EVIL,), ((Badge(EVIL),),), caption=EVIL))),
        facts_section(facts),
        layers_section(layers),
        Section("Curves", (Drawing(curves, EVIL),)),
    )
    built = render_page(
        EVIL, EVIL, sections, headline=EVIL, key_figures=[KeyFigure(EVIL, EVIL, EVIL)], created_utc=EVIL
    )
    profiled = profile_page(report_document(name=EVIL, headline=EVIL, backend_choice=EVIL, command=EVIL))
    for text in (built, profiled):
        assert "script" not in Reader(text).tags
        assert "<script" not in text
        assert EVIL in html.unescape(text)


@pytest.mark.parametrize("count", [1, 6])
def test_any_number_of_batches(count):
    page = profile_page(report_document(batches=[batch_record(2**index) for index in range(count)]))
    assert page.count("<svg") == count + 1 + (count > 1)  # ratios, distributions, and the sweep


def test_an_unbounded_interval_is_drawn_too():
    assert "<svg" in profile_page(report_document(batches=[batch_record(1, rounds=1, high=float("inf"))]))


def test_failed_engines_and_missing_numerics_are_said(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(small_network(), path)
    build = build_document(path, engine_error="no such operator").model_copy(update={"numerics": None})
    text = " ".join(Reader(render_page("t", "", [build_section(build)])).text)
    assert "no such operator" in text
    assert "no engine" in text
    assert "were not compared" in text
    assert build.engines_note in text


def run_chromium(chromium, tmp_path, *arguments):
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(chromium, tmp_path, page, width):
    """An iframe of the wanted width: a headless window cannot be narrower than 500 px."""
    for index, text in enumerate((page, everything(tmp_path))):
        frame = tmp_path / f"frame{index}.html"
        measure = "const d=f.contentDocument.documentElement;document.title=d.scrollWidth+' '+d.scrollHeight"
        frame.write_text(
            f'<iframe id="f" style="border:0;width:{width}px;height:900px" onload="{measure}" '
            f'srcdoc="{html.escape(text)}"></iframe>'
        )
        dom = run_chromium(chromium, tmp_path, "--dump-dom", "--window-size=1400,900", frame.as_uri())
        found = re.search(r"<title>(\d+) (\d+)</title>", dom)
        assert found, dom[:300]
        assert int(found[1]) == width
        assert int(found[2]) > 900


def test_light_and_dark(chromium, tmp_path, page):
    path = tmp_path / "report.html"
    path.write_text(page)
    brightness = {}
    for scheme, setting in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        run_chromium(
            chromium,
            tmp_path,
            f"--blink-settings=preferredColorScheme={setting}",
            "--window-size=1280,1600",
            f"--screenshot={shot}",
            path.as_uri(),
        )
        pixels = imread(shot)[..., :3].mean(axis=2)
        brightness[scheme] = float(np.median(pixels))
        # Ink and figures must stand out from the page in both.
        assert np.percentile(np.abs(pixels - brightness[scheme]), 99) > 0.35
    assert brightness["dark"] < 0.2
    assert brightness["light"] > 0.9


def test_layers_are_counted_as_the_judge_counted_them():
    layer = {"name": "a", "op": "conv", "shape": [8, 4], "pattern": "2:4", "density": 0.5}
    layers = [
        {**layer, "verdict": "conforms", "tensorrt": "eligible"},
        {**layer, "verdict": "violates", "tensorrt": "not 2:4-legal"},
        {**layer, "verdict": "not-prunable", "density": None, "tensorrt": "bias"},
    ]
    section = layers_section({"source": "model.onnx", "layers": layers, "problems": ["a: 3 groups fail"]})
    assert section.lead.startswith("1 of 2 prunable weights hold their pattern, counted in model.onnx")
    assert section.lead.endswith("for 1.")
    text = " ".join(Reader(render_page("t", "", [section])).text)
    assert "a: 3 groups fail" in text
    assert "50.0 %" in text
    assert "8x4" in text
