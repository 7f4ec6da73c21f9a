"""The whole profile page: every section, in a real browser, at a phone's width, light and dark."""

import html
import re

import numpy as np
import pytest
from matplotlib.image import imread
from profile_reports import full_report
from test_page import Reader, run_chromium

from nm2trt.report.profile_page import profile_page


@pytest.fixture(scope="module")
def page():
    return profile_page(full_report())


def test_every_section_is_there_and_names_stay_text(page):
    reader = Reader(page)
    text = " ".join(reader.text)
    for wanted in (
        "Latency", "Where the difference comes from", "Layers", "Under load", "Four facts", "Networks", "Method",
        "Device before and after", "Environment", "power cap", "memory bound", "roofline", "queue grows",
        "build 2 alone",
        "not measured on engines tuned for it", "clock moved between 1200 and 1400 MHz", "held its clock down",
    ):  # fmt: skip
        assert wanted.lower() in html.unescape(text + page).lower(), wanted
    assert "script" not in reader.tags
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    # Labels of logarithmic axes are plain numbers.
    assert "mathdefault" not in page


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desk(chromium, tmp_path, page, width):
    frame = tmp_path / "frame.html"
    measure = "const d=f.contentDocument.documentElement;document.title=d.scrollWidth+' '+d.scrollHeight"
    frame.write_text(
        f'<iframe id="f" style="border:0;width:{width}px;height:900px" onload="{measure}" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )
    dom = run_chromium(chromium, tmp_path, "--dump-dom", "--window-size=1400,900", frame.as_uri())
    found = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert found, dom[:300]
    assert int(found[1]) == width


def test_dark_is_dark(chromium, tmp_path, page):
    path = tmp_path / "report.html"
    path.write_text(page)
    shot = tmp_path / "dark.png"
    run_chromium(
        chromium, tmp_path, "--blink-settings=preferredColorScheme=0", "--window-size=1280,3000",
        f"--screenshot={shot}", path.as_uri(),
    )  # fmt: skip
    assert float(np.median(imread(shot)[..., :3])) < 0.2
