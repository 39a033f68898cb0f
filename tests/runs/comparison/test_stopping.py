"""A run at its best round, by hand: what is read, summed and printed."""

import io
import json

import pytest
from rich.console import Console

from fl_lightning.runs.comparison.report import Comparison, as_csv, footer, tables
from fl_lightning.runs.comparison.statistics import read_run_metrics
from fl_lightning.runs.comparison.stopping import STOPPING

METRICS = """eval/loss,selection/loss,selection/own_loss,round/tokens,step
5.5,,,,0
4.0,3.9,2.6,100,1
3.0,2.9,2.5,110,2
3.5,3.1,2.7,120,3
"""
LOSSES = {"1": (2.4, 3.0, 2.0), "2": (2.2, 3.2, 1.8), "3": (2.0, 3.4, 2.1)}
"""Held-out losses of a/c0, a/c1 and b/c0 by round."""


def metrics(loss):
    return {"loss": loss, "perplexity": 1.0, "token_accuracy": 0.5}


@pytest.fixture
def run_folder(tmp_path):
    """Three rounds of two departments; the departments' best round is the second one."""
    stages = {"base": metrics(5.5), "final": metrics(2.8)}
    values = {"departments": {"a": stages, "b": stages}, "mean": stages}
    (tmp_path / "federated_eval.json").write_text(json.dumps(values))
    rounds = {
        n: {"a": {"c0": metrics(x), "c1": metrics(y)}, "b": {"c0": metrics(z)}} for n, (x, y, z) in LOSSES.items()
    }
    (tmp_path / "client_eval_all_rounds.json").write_text(json.dumps({"rounds": rounds}))
    (tmp_path / "metrics.csv").write_text(METRICS)
    (tmp_path / "cluster_metadata").mkdir()
    for number in (1, 2, 3):
        sent = {"bytes": {"client/up": 1024, "client/down": 2048, "a/c0": 1024}}
        (tmp_path / f"cluster_metadata/round_{number}_aggregation.json").write_text(json.dumps(sent))
    return tmp_path


def stopping(run_folder, **options):
    values = read_run_metrics(run_folder, 3, **options).metrics
    return [values[name] for name in STOPPING]


def test_departments_stop_where_their_mean_selection_loss_is_lowest(run_folder):
    assert stopping(run_folder) == [3.5, 3.0, 2, 330, 210, 3 * 3072, 2 * 3072]


def test_clients_that_share_nothing_stop_by_their_own_selection_losses(run_folder):
    last, best, number, *_ = stopping(run_folder, own=True)
    assert (last, best, number) == (pytest.approx((2.7 + 2.1) / 2), pytest.approx((2.7 + 1.8) / 2), 2)


def test_held_out_losses_choose_nothing(run_folder):
    text = METRICS.replace("3.5,3.1,2.7,120,3", "0.5,3.1,2.7,120,3")
    (run_folder / "metrics.csv").write_text(text)
    assert stopping(run_folder)[:3] == [0.5, 3.0, 2]


def test_without_selection_losses_or_tokens_the_best_round_is_unknown(run_folder):
    (run_folder / "metrics.csv").write_text("eval/loss,step\n5.5,0\n4.0,1\n3.0,2\n3.5,3\n")
    assert stopping(run_folder) == [3.5, None, None, None, None, 3 * 3072, None]


def test_clients_own_metrics_are_of_each_clients_best_round(run_folder):
    best = {"a": {"round": 1, "loss": 1.0}, "a/c0": {"round": 3, "loss": 1.0}, "a/c1": {"round": 1, "loss": 1.0}}
    (run_folder / "early_stopping.json").write_text(json.dumps(best))
    run = read_run_metrics(run_folder, 3)
    assert run.departments["a"]["personal_loss"] == pytest.approx((2.0 + 3.0) / 2)
    assert run.departments["b"]["personal_loss"] == pytest.approx(2.1)


def test_the_table_is_printed_only_where_a_run_has_a_best_round(run_folder):
    def text(comparison):
        console = Console(file=io.StringIO(), width=120)
        for table in tables(comparison):
            assert table.__rich_measure__(console, console.options.update_width(80)).maximum <= 80
            console.print(table)
        return console.file.getvalue() + "\n".join(footer(comparison))

    comparison = Comparison([1], {"plain": {1: read_run_metrics(run_folder, 3)}}, {})
    row = next(line for line in text(comparison).split("stopped by selection")[1].splitlines() if "plain" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["plain", "3.5000 ± –", "3.0000 ± –", "2.0", "210", "6"]
    assert "Best round" in text(comparison)
    assert "run_tokens_to_best" in as_csv(comparison).splitlines()[0]
    (run_folder / "metrics.csv").unlink()
    assert "selection" not in text(Comparison([1], {"plain": {1: read_run_metrics(run_folder, 3)}}, {}))
