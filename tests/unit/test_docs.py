"""The pages: each is in the site's navigation, commands name configs that exist, aligned arrays keep their columns."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CONFIG = re.compile(r"--config=(configs/[\w/]+\.py)")


def test_every_page_is_in_the_navigation_and_all_that_is_there_exists():
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (DOCS / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert len(set(listed)) == len(listed) > 20
    assert [name for name in listed if not (ROOT / name).exists()] == []
    assert {f"docs/{page.name}" for page in PAGES} <= set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_name_files_and_modules_that_exist(page):
    text = page.read_text(encoding="utf-8")
    assert [name for name in CONFIG.findall(text) if not (ROOT / name).exists()] == []
    modules = set(re.findall(r"python -m ((?:lm|tpu|experiments|tests)(?:\.\w+)+)", text))
    gone = [name for name in modules if not any((ROOT / name.replace(".", "/")).with_suffix(s).exists() for s in ("", ".py"))]
    assert gone == []


def test_the_image_copies_files_that_exist_and_asks_for_extras_that_exist():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]]
    assert {"lm", "configs", "setup.py"} <= set(copied) and all((ROOT / word).exists() for word in copied)
    wanted = {extra for words in re.findall(r"EXTRAS=([\w,]+)", text) for extra in words.split(",")}
    code = "import setuptools, runpy; setuptools.setup = lambda **k: print(*k['extras_require']); runpy.run_path('setup.py')"
    known = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert wanted and wanted <= set(known), wanted - set(known)


@pytest.fixture(scope="module")
def fenced():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("arrays", DOCS / "arrays.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fenced


ARRAYS = "tokens    [5 6 7 8]\ntargets   [6 7 8]; of 2 given\n          [0 1 1]"


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"Says what.\n\n{ARRAYS}\n\nAnd why.", f"Says what.\n\n```text\n{ARRAYS}\n```\n\nAnd why."),
        ("Says what\n\n    python -m x    # a command", "Says what\n\n    python -m x    # a command"),
        ("| a   | b |\n|-----|---|\n| 1   | 2 |", "| a   | b |\n|-----|---|\n| 1   | 2 |"),
        ("Lines that go\non as one.", "Lines that go\non as one."),
    ],
)
def test_aligned_paragraphs_become_code_and_no_others(fenced, text, shown):
    assert fenced(text) == shown
