import re

from helpers import REPOSITORY
from page_commands import PAGES

from nm2trt.cli.main import COMMANDS

EXAMPLES = REPOSITORY / "examples"


def test_the_two_commands_are_shown():
    text = (REPOSITORY / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_exist():
    for page in PAGES:
        for name in re.findall(r"^\s*(?:\$ )?nm2trt ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: nm2trt {name}"
        for name in re.findall(r"benchmarks/(\w+\.py)", page.read_text()):
            assert (REPOSITORY / "benchmarks" / name).is_file(), f"{page.name}: {name}"


def test_every_example_has_its_line():
    text = (EXAMPLES / "README.md").read_text()
    files = [path for path in EXAMPLES.rglob("*.*") if path.is_file() and path.suffix in (".py", ".sbatch", ".yml")]
    assert len(files) >= 9
    for path in files:
        assert f"]({path.relative_to(EXAMPLES)})" in text, path.name
