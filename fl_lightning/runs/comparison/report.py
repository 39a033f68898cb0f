"""The output of ``compare``: tables, ``comparison.json``, ``comparison.csv`` and ``comparison.png``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from fl_lightning.runs.comparison.statistics import (
    DEPARTMENT_METRICS,
    GLOBAL,
    MIN_SEEDS,
    PERSONAL,
    RUN_METRICS,
    Difference,
    Interval,
    RunMetrics,
    difference,
    over_seeds,
)
from fl_lightning.runs.comparison.virtual_time import hours_to_loss_of
from fl_lightning.storage.files import write_bytes, write_json, write_text

UNKNOWN = "–"
INSTALL_PLOTS = "pip install 'fl_lightning[plots]'"


@dataclass(frozen=True)
class Comparison:
    """The finished runs of a comparison.

    Attributes:
        seeds: of each config.
        runs: {config: {seed: results of the run}}; the first config is the reference.
        failed: {"config, seed N": why that run failed}.
    """

    seeds: Sequence[int]
    runs: Mapping[str, Mapping[int, RunMetrics]]
    failed: Mapping[str, str]

    @property
    def first(self) -> str:
        """The reference: the config with which the others are compared."""
        return next(iter(self.runs))

    def differences(self) -> dict[str, Difference | None]:
        """{config: difference to the first config}, without the first."""
        return {name: difference(self.runs[self.first], runs) for name, runs in self.runs.items() if name != self.first}

    def departments(self) -> list[str]:
        """All departments, sorted."""
        return sorted({name for runs in self.runs.values() for run in runs.values() for name in run.departments})


def show(folder: Path, comparison: Comparison, *, by_department: bool = False) -> None:
    """Write the files and print the tables."""
    notes = write_report(folder, comparison)
    console = Console()
    for table in tables(comparison, by_department=by_department):
        console.print(table)
    for line in [*footer(comparison), *notes, f"Runs, comparison.json and comparison.csv are in {folder}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_report(folder: Path, comparison: Comparison) -> list[str]:
    """Write the three files into a folder.

    Returns:
        One line for each file that could not be made, and how to make it.
    """
    write_json(folder / "comparison.json", as_json(comparison))
    write_text(folder / "comparison.csv", as_csv(comparison))
    picture = folder / "comparison.png"
    if not any(run.curve for runs in comparison.runs.values() for run in runs.values()):
        return [f"{picture} was not drawn: no run has eval/loss in its metrics.csv; keep CSVLogger in logging.loggers"]
    try:
        write_bytes(picture, as_png(comparison))
    except ImportError:
        return [
            f"{picture} was not drawn: matplotlib is not installed; {INSTALL_PLOTS}, then compare --resume {folder}"
        ]
    return []


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All intervals, and the metrics of every run."""
    configs, differences = {}, comparison.differences()
    for name, runs in comparison.runs.items():
        results = list(runs.values())
        configs[name] = {
            "seeds": list(runs),
            "figures": {metric: _plain(over_seeds(results, metric)) for metric in RUN_METRICS},
            "departments": {
                d: {metric: _plain(over_seeds(results, metric, d)) for metric in DEPARTMENT_METRICS}
                for d in comparison.departments()
            },
            "loss_against_first": _plain(differences.get(name)),
            "runs": {str(seed): run.metrics for seed, run in runs.items()},
        }
    head = {"seeds": list(comparison.seeds), "first": comparison.first, "confidence": 0.95}
    return {**head, "failed": dict(comparison.failed), "configs": configs}


def _plain(value: Interval | Difference | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def as_csv(comparison: Comparison) -> str:
    """A row for each config, seed and department; metrics of a run are repeated in the rows of all its departments."""
    run_metrics = RUN_METRICS[len(DEPARTMENT_METRICS) :]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["config", "seed", "department", *DEPARTMENT_METRICS, *(f"run_{name}" for name in run_metrics)])
    for name, runs in comparison.runs.items():
        for seed, run in runs.items():
            shared = [run.metrics[metric] for metric in run_metrics]
            for department, metrics in run.departments.items():
                values = [metrics[metric] for metric in DEPARTMENT_METRICS]
                rows.writerow([name, seed, department, *values, *shared])
    return text.getvalue()


def as_png(comparison: Comparison) -> bytes:
    """Held-out loss over rounds, a line for each config: the mean over seeds, in a band from lowest to highest.

    Where all runs have virtual time, their losses over virtual hours are below, a line for each run.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    timed = all(run.hours for runs in comparison.runs.values() for run in runs.values())
    figure = Figure(figsize=(8, 9 if timed else 5), layout="constrained")
    axes, *below = figure.subplots(2 if timed else 1, squeeze=False).flat
    for name, runs in comparison.runs.items():
        curves = [run.curve for run in runs.values() if run.curve]
        if not curves:
            continue
        rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
        losses = [[curve[number] for curve in curves] for number in rounds]
        (line,) = axes.plot(rounds, [fmean(values) for values in losses], marker=".", label=name)
        low, high = [min(values) for values in losses], [max(values) for values in losses]
        axes.fill_between(rounds, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        for hour_axes in below:
            for run in runs.values():
                points = [(run.hours.get(number, 0.0), run.curve[number]) for number in sorted(run.curve)]
                hour_axes.plot(*zip(*points, strict=True), marker=".", color=line.get_color())
            hour_axes.set(xlabel="virtual hours", ylabel="held-out loss")
    axes.set(xlabel="round", ylabel="held-out loss, mean over departments (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title="mean over seeds; band: lowest to highest", alignment="left")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()


def tables(comparison: Comparison, *, by_department: bool = False) -> list[Table]:
    """Metrics of the adapters, differences of their loss to the first config, and costs."""
    quality = _table("held-out records", ("config", "adapters"), ("loss", "perplexity", "token accuracy"))
    for name, runs in comparison.runs.items():
        for title, kind, metrics in ((name, "departments'", GLOBAL), ("", "clients' own", PERSONAL)):
            loss, perplexity, accuracy = (over_seeds(runs.values(), metric) for metric in metrics)
            quality.add_row(title, kind, _cell(loss, 4), _cell(perplexity, 1), _cell(accuracy, 3))
        quality.add_section()
    result = [quality]
    for name, runs in comparison.runs.items() if by_department else ():
        by_name = _table(f"{name}, by department", ("department",), ("loss", "clients' own loss", "token accuracy"))
        for department in comparison.departments():
            loss, personal, accuracy = (
                over_seeds(runs.values(), metric, department) for metric in ("loss", "personal_loss", "token_accuracy")
            )
            by_name.add_row(department, _cell(loss, 4), _cell(personal, 4), _cell(accuracy, 3))
        result.append(by_name)
    if len(comparison.runs) > 1:
        differences = _table(f"loss against {comparison.first}", ("config",), ("difference", "pairs"))
        for name, gap in comparison.differences().items():
            pairs = (
                UNKNOWN if gap is None else f"{gap.interval.n} {gap.pairs if gap.interval.n > 1 else gap.pairs[:-1]}"
            )
            differences.add_row(name, _cell(gap.interval if gap else None, 4, sign="+"), pairs)
        result.append(differences)
    if any(over_seeds(runs.values(), "best_round") for runs in comparison.runs.values()):
        result.append(_stopping_table(comparison))
    if any(over_seeds(runs.values(), "virtual_hours") for runs in comparison.runs.values()):
        result.append(_virtual_table(comparison))
    cost = _table("cost and clusters", ("config",), ("KiB up", "KiB down", "seconds", "clusters", "ARI"))
    for name, runs in comparison.runs.items():
        up, down, seconds, clusters, ari = (
            over_seeds(runs.values(), metric) for metric in ("bytes_up", "bytes_down", "seconds", "clusters", "ari")
        )
        sizes = _number(up, 0, 1024), _number(down, 0, 1024)
        cost.add_row(name, *sizes, _number(seconds, 0), _number(clusters, 1), _cell(ari, 2))
    return [*result, cost]


def _virtual_table(comparison: Comparison) -> Table:
    """Virtual hours of the whole run, and until the loss that the first config ends with."""
    table = _table("virtual time", ("config",), ("hours", f"to the loss of {comparison.first}"))
    first = comparison.runs[comparison.first]
    for name, runs in comparison.runs.items():
        hours, to_loss = over_seeds(runs.values(), "virtual_hours"), hours_to_loss_of(first, runs)
        table.add_row(name, _cell(hours, 3), _cell(to_loss, 3))
    return table


def _stopping_table(comparison: Comparison) -> Table:
    """Held-out loss after the last round, and after the best one with what it has cost until then."""
    numbers = ("last round", "best round", "round", "tokens", "KiB sent")
    table = _table("held-out loss, stopped by selection records", ("config",), numbers)
    for name, runs in comparison.runs.items():
        last, best, number, tokens, sent = (
            over_seeds(runs.values(), metric)
            for metric in ("last_loss", "best_loss", "best_round", "tokens_to_best", "bytes_to_best")
        )
        cells = _number(number, 1), _number(tokens, 0), _number(sent, 0, 1024)
        table.add_row(name, _cell(last, 4), _cell(best, 4), *cells)
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in words:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cell(value: Interval | None, digits: int, sign: str = "") -> str:
    if value is None:
        return UNKNOWN
    half_width = UNKNOWN if value.half_width is None else f"{value.half_width:.{digits}f}"
    return f"{value.mean:{sign}.{digits}f} ± {half_width}"


def _number(value: Interval | None, digits: int, unit: int = 1) -> str:
    return UNKNOWN if value is None else f"{value.mean / unit:,.{digits}f}"


def footer(comparison: Comparison) -> list[str]:
    """Explanations of the tables, line by line."""
    seeds = ", ".join(map(str, comparison.seeds))
    lines = [f"Means over seeds {seeds}, ± half a 95 % t-interval ({UNKNOWN} if unknown, as with one seed)."]
    lines += ["For each seed, the partition of the data is the same for all configs."]
    for name, runs in comparison.runs.items():
        if len(runs) < len(comparison.seeds):
            lines.append(f"{name}: {len(runs)} of {len(comparison.seeds)} runs are finished.")
    lines += ["KiB: adapters sent in all rounds at both levels; seconds include loading."]
    if any(over_seeds(runs.values(), "best_round") for runs in comparison.runs.values()):
        lines.append(
            "Best round: lowest mean loss on selection records, one for all departments; tokens and KiB are up to it. "
            "Under early stopping the other tables have each adapter at its own best round."
        )
    pairs = {gap.pairs for gap in comparison.differences().values() if gap is not None}
    if "seeds" in pairs:
        lines.append("Differences (below 0 is better) are paired by seed, with losses averaged over departments.")
    if "departments" in pairs:
        reason = f"there are fewer than {MIN_SEEDS} seeds"
        lines.append(
            f"Differences (below 0 is better) are paired by department, with losses averaged over seeds: {reason}."
        )
    return [*lines, *(f"{run} failed: {reason}" for run, reason in comparison.failed.items())]
