"""Reports as they are read: on a laptop, on a phone, on paper."""

import html
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from profile_reports import full_report, report_document
from test_page import Reader, run_chromium

from nm2trt.artifacts.server_report import LoadRecord
from nm2trt.report.profile_page import profile_page
from nm2trt.report.server_load import _latency, load_svg

WIDEST_WINDOW = 1600
A4_WIDTH_PT = 595.3
SMALLEST_PX = 8.0
"""Height of a line of text that can still be read on a phone."""


@pytest.fixture(scope="module")
def page():
    return profile_page(full_report())


@pytest.fixture
def pdf(chromium, tmp_path, page):
    """Words of the printed pages: [[(text, x_min, x_max)]]."""
    if shutil.which("pdftotext") is None:
        pytest.skip("missing: pdftotext (Debian package poppler-utils)")
    (tmp_path / "page.html").write_text(page)
    run_chromium(
        chromium,
        tmp_path,
        "--no-pdf-header-footer",
        f"--print-to-pdf={tmp_path / 'p.pdf'}",
        (tmp_path / "page.html").as_uri(),
    )
    subprocess.run(["pdftotext", "-bbox", tmp_path / "p.pdf", tmp_path / "p.xhtml"], check=True)
    pages = (tmp_path / "p.xhtml").read_text().split("<page ")[1:]
    word = re.compile(r'<word xMin="([\d.-]+)" yMin="[\d.-]+" xMax="([\d.-]+)" yMax="[\d.-]+">(.*?)</word>')
    return [[(html.unescape(text), float(low), float(high)) for low, high, text in word.findall(one)] for one in pages]


def measured(chromium, tmp_path, page, width, script):
    """Run a script on a page of that width; `d` is its document, and the value comes back through JSON."""
    frame = tmp_path / "frame.html"
    run = f"const d=f.contentDocument;document.title=JSON.stringify((()=>{{{script}}})())"
    frame.write_text(
        f'<iframe id="f" style="border:0;width:{width}px;height:900px" onload="{html.escape(run)}" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )
    dom = run_chromium(chromium, tmp_path, "--dump-dom", f"--window-size={WIDEST_WINDOW},900", frame.as_uri())
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL).group(1)))


def test_every_column_is_in_sight_on_a_laptop(chromium, tmp_path, page):
    widths = measured(
        chromium,
        tmp_path,
        page,
        1280,
        "return [...d.querySelectorAll('.scroll')].map(e=>[e.scrollWidth,e.clientWidth])",
    )
    assert widths
    assert all(content <= box for content, box in widths), widths


def test_labels_of_figures_can_be_read_on_a_phone(chromium, tmp_path, page):
    script = "return [...d.querySelectorAll('svg text')].map(e=>[e.textContent,e.getBoundingClientRect().height])"
    texts = measured(chromium, tmp_path, page, 390, script)
    assert texts
    assert not [one for one in texts if one[1] < SMALLEST_PX]


def test_one_distribution_is_no_wider_than_one_of_three(chromium, tmp_path):
    script = "return d.querySelector('.panels > svg').getBoundingClientRect().width"
    batches = report_document().batches
    alone, beside = (
        measured(chromium, tmp_path, profile_page(report_document(batches=some)), 1280, script)
        for some in (batches[:1], batches)
    )
    assert alone <= 1.6 * beside


def test_paper_loses_nothing(pdf):
    """Whatever is cut off by a box lies outside of the page, where pdftotext still finds it."""
    for words in pdf:
        for text, low, high in words:
            assert low >= 0, text
            assert high <= A4_WIDTH_PT, text
    printed = {word for words in pdf for word, _, _ in words}
    for wanted in (
        "why not faster",
        "memory bound: moving its tensors takes longer",
        "fuse",
        "Processor",
        "temperature",
    ):
        assert set(wanted.split()) <= printed


def test_paper_is_used(pdf):
    assert len(pdf[0]) > 60, "the first page holds the title and next to nothing"
    assert len(pdf[-1]) > 20, "the last page holds the footer and next to nothing"


def load_records(p99):
    return [
        LoadRecord(
            protocol="http", concurrency=2**at, seconds=1.0, requests=100, errors=0, wrong=0, first_error="",
            throughput_per_s=100.0, p50_ms=1.0, p90_ms=2.0, p99_ms=high, client_cpu_share=0.1,
        )
        for at, high in enumerate(p99)
    ]  # fmt: skip


@pytest.mark.parametrize("p99", [[90.0, 5.0, 4.0, 3.0], [3.0, 4.0, 5.0, 6.0], [3.0], [20.0, 5.0, 31.0]])
def test_the_legend_lies_on_no_line(p99):
    figure = _latency(load_records(p99))
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    (axes,) = figure.axes
    assert axes.get_legend() is None
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.parametrize("p99", [[3.0, 40.0], [3.0, 400.0], [40.0, 35.0]])
def test_no_formula_is_left_unset(p99):
    assert "mathdefault" not in load_svg(load_records(p99), name="load")


def network(share):
    return report_document().sparse.model_copy(update={"zero_share": share})


def test_a_network_without_zeros_is_not_called_filled():
    text = " ".join(Reader(profile_page(report_document(sparse=network(0.0)))).text)
    assert "zeros filled" not in text
    assert "the same network: it has no zeros to fill" in text
    assert "same values" in text
    assert "zeros filled" in " ".join(Reader(profile_page(report_document(sparse=network(0.5)))).text)


@pytest.mark.parametrize("width", [390, 1280])
def test_names_without_a_break_stay_on_the_page(chromium, tmp_path, width):
    """Only tables may scroll, and on a laptop not even they."""
    name = "features" + "x" * 150
    report = full_report(name, headline=f"output '{name}' is served, and the build has none")
    assert report.layers is not None
    layers = tuple(one.model_copy(update={"name": f"{name}{at}"}) for at, one in enumerate(report.layers.layers))
    report = report.model_copy(update={"layers": report.layers.model_copy(update={"layers": layers})})
    script = "return [d.documentElement.scrollWidth,...[...d.querySelectorAll('.scroll')].map(e=>e.scrollWidth)]"
    whole, *tables = measured(chromium, tmp_path, profile_page(report), width, script)
    assert whole == width
    assert width < 1000 or max(tables) <= width
