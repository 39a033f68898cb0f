"""The tables that the benchmarks put into docs/results.md."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = [
    "levels",
    "curves",
    "main",
    "records",
    "epochs",
    "smollm2",
    "conflict",
    "control",
    "even",
    "kinship",
    "flan",
    "dolly",
    "recovery_few",
    "recovery_many",
]


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


def test_every_table_of_the_page_is_between_its_marks():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- table (\w+) -->", page)) == sorted(TABLES)
    outside = re.sub(r"<!-- table (\w+) -->\n.*?<!-- end \1 -->", "", page, flags=re.DOTALL)
    assert not re.search(r"^\|", outside, flags=re.MULTILINE)


def test_a_table_takes_the_place_of_the_one_between_its_marks(benchmark_module, tmp_path):
    common = benchmark_module("benchmarks.common")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table x -->\nold\n<!-- end x -->\nb\n")
    common.put_table(page, "x", common.markdown(("one", "two"), [["1", common.shown(None)]]))
    assert page.read_text() == "a\n<!-- table x -->\n| one | two |\n|---|---|\n| 1 | – |\n<!-- end x -->\nb\n"
    with pytest.raises(SystemExit, match="no <!-- table y -->"):
        common.put_table(page, "y", "")


def test_figures_have_a_minus_sign(benchmark_module):
    common = benchmark_module("benchmarks.common")
    assert common.shown({"mean": -0.5, "half_width": 0.25}, signed=True) == "−0.500 ± 0.250"
    assert common.shown({"mean": 0.5, "half_width": None}, signed=True) == "+0.500"


def test_kinship_is_sorted_by_the_first_mean(benchmark_module):
    kinship = benchmark_module("benchmarks.methods.cluster_recovery")
    both = {"raw agglomerative elbow": [[0.0, 0.5]], "delta agglomerative elbow": [[1.0, 0.5]]}
    lone = {"raw agglomerative elbow": [[-1.0, -1.0]]}
    table = kinship.table({"choose": {"tune_a": [{"ari": both}, {"ari": both}]}, "held": {"held_b": [{"ari": lone}]}})
    assert table.splitlines()[:4] == [
        "| representation, rule | a | choose | b | held |",
        "|---|---|---|---|---|",
        "| delta, elbow | 0.75 | 0.75 | – | – |",
        "| raw, elbow | 0.25 | 0.25 | −1.00 | −1.00 |",
    ]
    assert len(table.splitlines()) == 4


def test_recovery_shows_the_range_over_methods(benchmark_module):
    grouping = benchmark_module("benchmarks.methods.grouping")
    scores = {f"raw {method} {rule}": [[0.0, 1.0, 0.5]] for method in grouping.METHODS for rule in grouping.RULES}
    scores["raw kmeans elbow"] = [[-1.0, 1.0, 1.0]]
    row = "| raw | −1.00 to 0.00; 0.75 to 1.00 | 0.00; 0.75 | 0.00; 0.75 | 0.00; 0.75 |"
    assert grouping.table(scores).splitlines()[2:] == [row]
