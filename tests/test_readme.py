import re
from pathlib import Path

import pytest
from forked import Forked

from fl_lightning.config.shortcuts import SHORTCUTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def snippets(page):
    return re.findall(r"```python\n(.*?)```", TEXT[page], re.DOTALL)


def run(code, folder):
    status, output = Forked(code, folder).finish(timeout=300)
    assert status == 0, output[-2000:]


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
@pytest.mark.parametrize("number", range(len(snippets("python.md"))))
def test_python_in_the_docs_runs(number, tmp_path):
    run(snippets("python.md")[number], tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_adapter_of_a_run_is_used_as_the_readme_says(tmp_path):
    small = ["--rounds", "1", "--clients-per-dept", "1", "--max-records", "2", "--logging.samples", "0"]
    assert Forked(["fit", *small], tmp_path).finish()[0] == 0
    (load,) = snippets("README.md")
    assert "lightning_logs/version_0/adapters/hr" in load
    run(load + "\nassert model.peft_config['default'].r == 8", tmp_path)


def test_readme_is_short():
    assert TEXT["README.md"].count("\n") <= 150


def test_docs_name_every_short_flag():
    assert [flag for flag in SHORTCUTS if flag not in TEXT["configuration.md"]] == []


def test_files_that_the_pages_name_exist():
    named = {name for text in TEXT.values() for name in re.findall(r"`((?:configs|docs|fl_lightning)/[\w./-]+)`", text)}
    assert len(named) >= 6
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_modules_that_the_maps_name_exist():
    text = TEXT["CONTRIBUTING.md"] + TEXT["architecture.md"]
    named = set(re.findall(r"(?<![\w./])((?:[a-z_]+/)+[a-z_]+\.py|(?:[a-z_]+/)*[a-z_]+/(?=`))", text))
    assert len(named) > 40
    assert (
        sorted(name for name in named if not any((ROOT / top / name).exists() for top in ("fl_lightning", "."))) == []
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT[page.name])
    assert [link for link in links if not (page.parent / link).exists()] == []
