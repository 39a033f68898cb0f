"""Results of runs under several configs and seeds: averaged over seeds, and compared in pairs.

Intervals are Student's: ``mean ± t(0.975, n − 1) · s / √n``, with s the standard deviation of n values. Differences
between two configs are computed within pairs, which removes the effect of the seed and of the department.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t as student

from fl_lightning.errors import InputError
from fl_lightning.evaluation.metrics import perplexity
from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.runs.artifacts import ROOT, MetricValues, RunArtifacts
from fl_lightning.runs.comparison.stopping import STOPPING, stopping_metrics
from fl_lightning.storage.run_adapters import best_rounds

OptionalMetrics = dict[str, float | None]
Pairs = Literal["seeds", "departments"]

GLOBAL = ("loss", "perplexity", "token_accuracy")
"""Metrics of the departments' adapters on held-out records."""
PERSONAL = tuple(f"personal_{name}" for name in GLOBAL)
"""Metrics of the clients' own adapters after their last fit, on their own held-out records."""
LEVELS = ("client/up", "client/down", "department/up", "department/down")
BYTES = (*(f"bytes_{level.replace('/', '_')}" for level in LEVELS), "bytes_up", "bytes_down")
"""Bytes of adapters sent in all rounds; the last two are sums over both levels."""
DEPARTMENT_METRICS = (*GLOBAL, *PERSONAL)
RUN_METRICS = (*DEPARTMENT_METRICS, *BYTES, "seconds", "clusters", "ari", *STOPPING, "virtual_hours")
MIN_SEEDS = 3
"""With this many seeds or more the pairs are seeds; with fewer they are departments."""


@dataclass(frozen=True)
class RunMetrics:
    """Results of one run; unknown values are None.

    Attributes:
        metrics: {name: value}, the names being `RUN_METRICS`; those of adapters are means over departments.
        departments: {department: {name: value}}, the names being `DEPARTMENT_METRICS`.
        curve: {round: mean held-out loss}, with the base model as round 0; empty without metrics.csv.
        hours: {round: virtual hours at its end}; empty without virtual time.
    """

    metrics: OptionalMetrics
    departments: dict[str, OptionalMetrics]
    curve: dict[int, float]
    hours: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """A mean of n values, and half the width of its 95 % interval (None for a single value)."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of the held-out loss to the first config; below 0 is better."""

    interval: Interval
    pairs: Pairs


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95 % t-interval; None without values.

    Example:
        >>> result = interval([1.0, 2.0, 3.0])
        >>> result.mean, round(result.half_width, 4), result.n  # 4.3027 · 1 / √3
        (2.0, 2.4841, 3)
        >>> interval([1.0])
        Interval(mean=1.0, half_width=None, n=1)
    """
    n = len(values)
    if n < 2:
        return Interval(float(values[0]), None, 1) if values else None
    return Interval(fmean(values), float(student.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n), n)


def over_seeds(runs: Iterable[RunMetrics], name: str, department: str | None = None) -> Interval | None:
    """Mean of one metric over the runs of a config that have it: of the run, or of a department."""
    values = [(run.metrics if department is None else run.departments.get(department, {})).get(name) for run in runs]
    return interval([value for value in values if value is not None])


def difference(first: Mapping[int, RunMetrics], other: Mapping[int, RunMetrics]) -> Difference | None:
    """Loss of `other` minus loss of `first`, over the seeds and departments that both have.

    With three seeds or more a pair is a seed, with losses averaged over departments: the interval covers the choice of
    the seed. With two seeds a pair is a department, with losses averaged over seeds: the interval covers the choice of
    the department. One seed gives no interval.

    Args:
        first: {seed: run} of the reference config.
        other: {seed: run} of the other config.

    Returns:
        None if they have no seed in common.

    Example:
        >>> def run(a, b):
        ...     return RunMetrics({}, {"a": {"loss": a}, "b": {"loss": b}}, {})
        >>> difference({1: run(3.0, 2.0)}, {1: run(2.5, 1.5)}).interval
        Interval(mean=-0.5, half_width=None, n=1)
        >>> difference({1: run(3.0, 2.0), 2: run(3.0, 2.0)}, {1: run(2.5, 1.5), 2: run(2.75, 2.0)}).interval.mean
        -0.3125
    """
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        return None
    names = sorted(set.intersection(*(set(side[seed].departments) for side in (first, other) for seed in seeds)))
    gaps = {(seed, name): _loss(other[seed], name) - _loss(first[seed], name) for seed in seeds for name in names}
    pairs: Pairs = "departments" if 1 < len(seeds) < MIN_SEEDS else "seeds"
    if pairs == "seeds":
        mean_gap = interval([fmean(gaps[seed, name] for name in names) for seed in seeds])
    else:
        mean_gap = interval([fmean(gaps[seed, name] for seed in seeds) for name in names])
    return None if mean_gap is None else Difference(mean_gap, pairs)


def _loss(run: RunMetrics, department: str) -> float:
    loss = run.departments[department]["loss"]
    if loss is None:
        raise ValueError(f"expected a loss of every department, got none of {department}")
    return loss


def read_run_metrics(
    run_folder: Path,
    rounds: int,
    *,
    seconds: float | None = None,
    truth: Mapping[str, int] | None = None,
    own: bool = False,
) -> RunMetrics:
    """The results of a finished run.

    Args:
        run_folder: as ``fit`` leaves it.
        rounds: number of rounds that it had.
        seconds: wall time; None if unknown.
        truth: {department: true cluster}, for the adjusted Rand index of the last round's clusters.
        own: whether clients share nothing, so that their own adapters are what the run is about.

    Raises:
        InputError: if the evaluation is missing, or a file is not as ``fit`` writes it.
    """
    run = read_artifacts(run_folder)
    for name, reason in run.broken.items():
        raise InputError(f"{run_folder / name}: expected a file as fit writes it, got a broken one ({reason})")
    try:
        clients = _of_best_rounds(run)
        personal = {name: _mean_personal(own.values(), GLOBAL) for name, own in clients.items() if own}
        departments: dict[str, OptionalMetrics] = {
            name: {**_global(run.metrics[name]["final"]), **personal.get(name, dict.fromkeys(PERSONAL))}
            for name in run.metrics
            if name not in run.groups
        }
        metrics: OptionalMetrics = {
            **_global(run.mean_metrics["final"]),
            **_mean_personal(personal.values(), PERSONAL),
            **_bytes(run, rounds),
            "seconds": seconds,
            **_clusters(run, rounds, truth),
            **stopping_metrics(run, rounds, own=own),
            "virtual_hours": run.virtual_hours.get(rounds),
        }
    except KeyError as error:
        raise InputError(f"{run_folder}: expected the results of a finished run, got none of {error}") from error
    return RunMetrics(metrics, departments, run.mean_loss, run.virtual_hours)


def _of_best_rounds(run: RunArtifacts) -> dict[str, dict[str, MetricValues]]:
    """{department: {client: metrics of its own adapter}} of the best round under early stopping, else the newest."""
    clients, best = run.newest_client_metrics(), best_rounds(run.folder)
    for department, metrics in clients.items():
        for client in metrics:
            number = best.get(f"{department}/{client}")
            if number is not None:
                metrics[client] = run.client_metrics[number][department][client]
    return clients


def _global(values: Mapping[str, float]) -> OptionalMetrics:
    return {name: values[name] for name in GLOBAL}


def _mean_personal(values: Iterable[Mapping[str, float | None]], names: Sequence[str]) -> OptionalMetrics:
    """Means of loss and accuracy as personal metrics; the perplexity is that of the mean loss."""
    rows = list(values)
    if not rows:
        return dict.fromkeys(PERSONAL)
    loss, accuracy = (fmean(value for row in rows if (value := row[name]) is not None) for name in (names[0], names[2]))
    return dict(zip(PERSONAL, (loss, perplexity(loss), accuracy), strict=True))


def _bytes(run: RunArtifacts, rounds: int) -> OptionalMetrics:
    """Sums over rounds; unknown if a round is missing."""
    if any(number not in run.bytes_sent for number in range(1, rounds + 1)):
        return dict.fromkeys(BYTES)
    sent = [run.bytes_sent[number] for number in range(1, rounds + 1)]
    sums = [float(sum(by_level.get(level, 0) for by_level in sent)) for level in LEVELS]
    return dict(zip(BYTES, (*sums, sums[0] + sums[2], sums[1] + sums[3]), strict=True))


def _clusters(run: RunArtifacts, rounds: int, truth: Mapping[str, int] | None) -> OptionalMetrics:
    """Number of clusters in the last round, and their adjusted Rand index."""
    clustering = run.clusters.get(rounds, {}).get(ROOT)
    if clustering is None:
        return {"clusters": None, "ari": None}
    known = [name for name in clustering.assignments if name in (truth or {})]
    if truth is None or len(known) < 2:
        return {"clusters": clustering.n_clusters, "ari": None}
    from sklearn.metrics import adjusted_rand_score

    labels = [[side[name] for name in known] for side in (truth, clustering.assignments)]
    return {"clusters": clustering.n_clusters, "ari": float(adjusted_rand_score(*labels))}
