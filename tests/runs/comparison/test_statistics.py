import csv
import io
import json
import math
import sys

import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from fl_lightning.errors import InputError
from fl_lightning.runs.comparison.report import Comparison, as_csv, as_json, as_png, footer, show, tables
from fl_lightning.runs.comparison.statistics import (
    BYTES,
    PERSONAL,
    RUN_METRICS,
    RunMetrics,
    difference,
    interval,
    over_seeds,
    read_run_metrics,
)


def figures(loss, accuracy):
    return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": accuracy}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def run_folder(tmp_path):
    """Two rounds of two departments, a with two clients of whom the second was asked in round 1 only."""
    write(
        tmp_path / "federated_eval.json",
        {
            "departments": {
                "a": {"base": figures(5.0, 0.1), "final": figures(2.0, 0.4)},
                "b": {"base": figures(6.0, 0.1), "final": figures(4.0, 0.2)},
            },
            "mean": {"base": figures(5.5, 0.1), "final": figures(3.0, 0.3)},
        },
    )
    first = {"a": {"c0": figures(9.0, 0.0), "c1": figures(2.0, 0.4)}, "b": {"c0": figures(9.0, 0.0)}}
    last = {"a": {"c0": figures(1.0, 0.6)}, "b": {"c0": figures(3.0, 0.3)}}
    write(tmp_path / "client_eval_all_rounds.json", {"rounds": {"2": last, "1": first}})
    for number in (1, 2):
        sent = {"client/up": 1024, "client/down": 2048, "a/c0": 1024, "department/up": 10 * number}
        write(tmp_path / f"cluster_metadata/round_{number}_aggregation.json", {"bytes": sent})
    clusters = {"n_clusters": 2, "assignments": {"a": 0, "b": 1}}
    write(tmp_path / "cluster_metadata/round_2_department_clusters.json", clusters)
    write(tmp_path / "metrics.csv", "a/x,eval/loss,step\n,5.5,0\n1,4.0,1\n1,,1\n2,3.0,2\n")
    return tmp_path


# Intervals, by hand: the quantiles of Student's t at 97.5 % are 12.7062, 4.3027 and 3.1824 for 1, 2 and 3 degrees


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([1.0, 3.0], 2.0, 12.7062 * math.sqrt(2) / math.sqrt(2)),
        ([1.0, 2.0, 3.0], 2.0, 4.3027 * 1 / math.sqrt(3)),
        ([2.0, 4.0, 4.0, 6.0], 4.0, 3.1824 * math.sqrt(8 / 3) / 2),
        ([5.0, 5.0, 5.0], 5.0, 0.0),
    ],
)
def test_interval_is_students(values, mean, half):
    found = interval(values)
    assert (found.mean, found.n) == (mean, len(values))
    assert found.half_width == pytest.approx(half, abs=1e-4)


def test_one_value_has_no_interval_and_no_value_no_mean():
    assert interval([4.0]).half_width is None
    assert interval([]) is None


def of_losses(*losses):
    """A run with these losses of departments a, b, c, …"""
    departments = {name: {"loss": loss} for name, loss in zip("abcdef", losses, strict=False)}
    return RunMetrics({"loss": sum(losses) / len(losses)}, departments, {})


FIRST = {1: of_losses(3.0, 2.0, 5.0), 2: of_losses(3.2, 2.4, 4.8), 3: of_losses(2.9, 2.2, 5.1)}
OTHER = {1: of_losses(2.5, 2.1, 4.0), 2: of_losses(3.0, 2.0, 4.5), 3: of_losses(2.8, 2.3, 4.2)}


def check_against_scipy(found, ours, theirs):
    low, high = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.interval.n == len(ours)
    assert found.interval.mean - found.interval.half_width == pytest.approx(low)
    assert found.interval.mean + found.interval.half_width == pytest.approx(high)


def test_with_three_seeds_pairs_are_seeds():
    found = difference(FIRST, OTHER)
    assert found.pairs == "seeds"
    ours, theirs = ([runs[seed].metrics["loss"] for seed in (1, 2, 3)] for runs in (OTHER, FIRST))
    check_against_scipy(found, ours, theirs)


def test_with_two_seeds_pairs_are_departments():
    first, other = ({seed: runs[seed] for seed in (1, 2)} for runs in (FIRST, OTHER))
    found = difference(first, other)
    assert found.pairs == "departments"
    ours, theirs = (
        [(runs[1].departments[name]["loss"] + runs[2].departments[name]["loss"]) / 2 for name in "abc"]
        for runs in (other, first)
    )
    check_against_scipy(found, ours, theirs)


def test_one_seed_gives_a_difference_without_interval():
    found = difference({1: FIRST[1]}, {1: OTHER[1]}).interval
    assert found.mean == pytest.approx((-0.5 + 0.1 - 1.0) / 3)
    assert found.half_width is None


def test_only_seeds_that_both_have_are_paired():
    assert difference(FIRST, {3: OTHER[3], 4: OTHER[1]}) == difference({3: FIRST[3]}, {3: OTHER[3]})
    assert difference(FIRST, {4: OTHER[1]}) is None
    assert difference(FIRST, {}) is None


def test_config_does_not_differ_from_itself():
    found = difference(FIRST, FIRST).interval
    assert (found.mean, found.half_width) == (0.0, 0.0)


# Run folders


def test_figures_of_a_run_by_hand(run_folder):
    run = read_run_metrics(run_folder, 2, seconds=7.5, truth={"a": 0, "b": 1, "z": 1})
    assert set(run.metrics) == set(RUN_METRICS)
    assert [run.metrics[name] for name in ("loss", "perplexity", "token_accuracy")] == [3.0, math.exp(3.0), 0.3]
    # a: c0 of round 2 and c1 of round 1, its last; b: c0 of round 2
    assert run.departments["a"]["personal_loss"] == 1.5
    assert run.departments["a"]["personal_token_accuracy"] == 0.5
    assert run.departments["b"]["personal_perplexity"] == pytest.approx(math.exp(3.0))
    assert run.metrics["personal_loss"] == 2.25
    assert run.metrics["personal_perplexity"] == pytest.approx(math.exp(2.25))
    assert [run.metrics[name] for name in BYTES] == [2048, 4096, 30, 0, 2078, 4096]
    assert (run.metrics["seconds"], run.metrics["clusters"], run.metrics["ari"]) == (7.5, 2, 1.0)
    assert run.curve == {0: 5.5, 1: 4.0, 2: 3.0}
    assert run.departments["b"]["loss"] == 4.0


def test_ari_by_hand(run_folder):
    clusters = {"n_clusters": 2, "assignments": {"a": 0, "b": 0, "c": 1, "d": 1}}
    write(run_folder / "cluster_metadata/round_2_department_clusters.json", clusters)
    # Crossed: no pair is together in both, expected 2 · 2 / 6 = 2/3, at most 2, so (0 − 2/3) / (2 − 2/3).
    run = read_run_metrics(run_folder, 2, truth={"a": 0, "b": 1, "c": 0, "d": 1})
    assert run.metrics["ari"] == pytest.approx(-0.5)


def test_what_is_not_there_is_unknown(run_folder):
    (run_folder / "client_eval_all_rounds.json").write_text('{"rounds": {}}')
    for name in ("metrics.csv", "cluster_metadata/round_1_aggregation.json"):
        (run_folder / name).unlink()
    (run_folder / "cluster_metadata/round_2_department_clusters.json").unlink()
    run = read_run_metrics(run_folder, 2, truth={"a": 0, "b": 1})
    assert {run.metrics[name] for name in (*PERSONAL, *BYTES, "seconds", "clusters", "ari")} == {None}
    assert run.departments["a"]["personal_loss"] is None
    assert run.curve == {}


@pytest.mark.parametrize("truth", [None, {}, {"a": 0}])
def test_no_ari_without_a_truth_of_two_departments(run_folder, truth):
    run = read_run_metrics(run_folder, 2, truth=truth)
    assert (run.metrics["clusters"], run.metrics["ari"]) == (2, None)


@pytest.mark.parametrize("content", ["[]", "{}", '{"departments": {"a": 5}, "mean": {}}', "{"])
def test_file_of_another_shape_is_bad_input(run_folder, content):
    (run_folder / "federated_eval.json").write_text(content)
    with pytest.raises(InputError, match="expected"):
        read_run_metrics(run_folder, 2)


# Report


@pytest.fixture
def comparison(run_folder):
    run = read_run_metrics(run_folder, 2, seconds=7.5)
    worse = RunMetrics({**run.metrics, "loss": 3.5}, run.departments, {0: 5.5, 1: 5.0, 2: 4.0})
    return Comparison([1, 2], {"plain": {1: run, 2: worse}, "new": {1: run}}, {"new, seed 2": "it\nbroke"})


def printed(comparison, **options):
    console = Console(file=io.StringIO(), width=120)
    for table in tables(comparison, **options):
        console.print(table)
    return console.file.getvalue()


def test_tables_show_means_with_intervals(comparison):
    text = printed(comparison)
    assert f"3.2500 ± {12.7062 * 0.25:.4f}" in text
    assert "3.0000 ± –" in text  # one seed came to its end
    assert "1 seed" in text
    assert "customer" not in text
    assert "new, by department" not in text
    assert "new, by department" in printed(comparison, by_department=True)


def test_tables_fit_80_columns(comparison):
    console = Console(file=io.StringIO(), width=80)
    for table in tables(comparison, by_department=True):
        assert table.__rich_measure__(console, console.options).maximum <= 80


def test_figures_that_nobody_has_are_dashes(comparison):
    empty = Comparison([1], {"plain": {}, "new": {}}, {"plain, seed 1": "x", "new, seed 1": "y"})
    row = next(line for line in printed(empty).splitlines() if "plain" in line)
    assert row.count("–") == 3
    assert as_json(empty)["configs"]["plain"]["figures"]["loss"] is None
    assert as_csv(empty).count("\n") == 1


def test_footer_says_what_is_paired_and_what_failed(comparison):
    text = "\n".join(footer(comparison))
    for words in ("seeds 1, 2", "partition of the data is the same", "new: 1 of 2 runs", "new, seed 2 failed: it"):
        assert words in text
    runs = {"first": FIRST, "other": OTHER}
    assert "paired by seed," in "\n".join(footer(Comparison([1, 2, 3], runs, {})))
    two = {name: {seed: run[seed] for seed in (1, 2)} for name, run in runs.items()}
    assert "paired by department," in "\n".join(footer(Comparison([1, 2], two, {})))


def test_csv_has_a_row_for_config_seed_and_department(comparison):
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    keys = [(row["config"], row["seed"], row["department"]) for row in rows]
    assert keys == [(c, s, d) for c, s in (("plain", "1"), ("plain", "2"), ("new", "1")) for d in ("a", "b")]
    assert (rows[1]["loss"], rows[1]["personal_loss"], rows[1]["run_bytes_up"]) == ("4.0", "3.0", "2078.0")
    assert rows[0]["run_ari"] == ""


def test_json_has_intervals_runs_and_departments(comparison):
    found = json.loads(json.dumps(as_json(comparison), allow_nan=False))
    assert (found["first"], found["seeds"], found["failed"]) == ("plain", [1, 2], {"new, seed 2": "it\nbroke"})
    plain, new = found["configs"]["plain"], found["configs"]["new"]
    assert plain["figures"]["loss"]["mean"] == 3.25
    assert plain["departments"]["b"]["loss"] == {"mean": 4.0, "half_width": 0.0, "n": 2}
    assert plain["loss_against_first"] is None
    assert new["loss_against_first"]["interval"] == {"mean": 0.0, "half_width": None, "n": 1}
    assert new["runs"]["1"]["bytes_up"] == 2078
    assert over_seeds(comparison.runs["plain"].values(), "loss", "b").mean == 4.0


def test_picture_is_a_png(comparison):
    assert as_png(comparison).startswith(b"\x89PNG")


def test_show_writes_the_files_and_says_where(comparison, tmp_path, capsys):
    show(tmp_path / "out", comparison)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"comparison.{e}" for e in ("csv", "json", "png")]
    out = capsys.readouterr().out
    assert "held-out records" in out
    assert f"are in {tmp_path / 'out'}" in out


def test_without_matplotlib_one_line_says_what_to_install(comparison, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    show(tmp_path / "out", comparison)
    lines = [line for line in capsys.readouterr().out.splitlines() if "comparison.png" in line]
    assert len(lines) == 1
    assert "pip install 'fl_lightning[plots]'" in lines[0]
    assert not (tmp_path / "out/comparison.png").exists()
    assert (tmp_path / "out/comparison.json").is_file()


def test_without_metrics_one_line_says_what_is_missing(comparison, tmp_path, capsys):
    runs = {
        name: {s: RunMetrics(r.metrics, r.departments, {}) for s, r in of.items()}
        for name, of in comparison.runs.items()
    }
    show(tmp_path / "out", Comparison([1, 2], runs, {}))
    assert "no run has eval/loss in its metrics.csv" in capsys.readouterr().out
