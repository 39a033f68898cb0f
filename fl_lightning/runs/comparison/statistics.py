"""Figures of runs under several configs and seeds: read from run folders, averaged over seeds, compared in pairs.

An interval is Student's: ``mean ± t(0.975, n − 1) · s / √n``, with s the standard deviation of n values. Differences
between two configs are taken within pairs, which removes what both sides of a pair share: its seed and its department.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.stats import t as student

from fl_lightning.errors import InputError
from fl_lightning.evaluation.metrics import perplexity
from fl_lightning.storage.files import read_json

Figures = dict[str, float | None]
Pairs = Literal["seeds", "departments"]

GLOBAL = ("loss", "perplexity", "token_accuracy")
"""Of the departments' adapters on held-out records."""
PERSONAL = tuple(f"personal_{name}" for name in GLOBAL)
"""Of the clients' own adapters after their last fit, on their own held-out records."""
LEVELS = ("client/up", "client/down", "department/up", "department/down")
BYTES = (*(f"bytes_{level.replace('/', '_')}" for level in LEVELS), "bytes_up", "bytes_down")
"""Of the adapters that travelled in all rounds; the last two are sums over both levels."""
OF_DEPARTMENT = (*GLOBAL, *PERSONAL)
OF_RUN = (*OF_DEPARTMENT, *BYTES, "seconds", "clusters", "ari")
ENOUGH_SEEDS = 3
"""With so many seeds the pairs are seeds; with fewer they are departments."""


@dataclass(frozen=True)
class RunFigures:
    """One run; a figure that is not known is None."""

    figures: Figures
    """{name: value}, the names being `OF_RUN`; those of adapters are means over departments."""
    departments: dict[str, Figures]
    """{department: {name: value}}, the names being `OF_DEPARTMENT`."""
    curve: dict[int, float]
    """{round: mean evaluation loss}, round 0 being the base model; empty without metrics.csv."""


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval; None for a single value."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of the evaluation loss to the first config; below 0 is better than that."""

    interval: Interval
    pairs: Pairs


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95 % t-interval; None of nothing.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.half_width, 4), found.n  # 4.3027 · 1 / √3
        (2.0, 2.4841, 3)
        >>> interval([1.0])
        Interval(mean=1.0, half_width=None, n=1)
    """
    n = len(values)
    if n < 2:
        return Interval(float(values[0]), None, 1) if values else None
    return Interval(fmean(values), float(student.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n), n)


def over_seeds(runs: Iterable[RunFigures], name: str, department: str | None = None) -> Interval | None:
    """A figure's mean over the runs of one config that have it, of a department where one is named."""
    found = [(run.figures if department is None else run.departments.get(department, {})).get(name) for run in runs]
    return interval([value for value in found if value is not None])


def difference(first: Mapping[int, RunFigures], other: Mapping[int, RunFigures]) -> Difference | None:
    """Loss of `other` minus loss of `first`, over the seeds and departments that both have.

    With three seeds or more a pair is a seed, its losses averaged over departments: the interval says what another seed
    would change. With two, a pair is a department, its losses averaged over seeds: the interval says what another
    department would change. One seed gives no interval.

    Args:
        first: {seed: run} of the config that is compared with.
        other: {seed: run} of the other one.

    Returns:
        None where they have no seed in common.

    Example:
        >>> def run(a, b):
        ...     return RunFigures({}, {"a": {"loss": a}, "b": {"loss": b}}, {})
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
    pairs: Pairs = "departments" if 1 < len(seeds) < ENOUGH_SEEDS else "seeds"
    if pairs == "seeds":
        found = interval([fmean(gaps[seed, name] for name in names) for seed in seeds])
    else:
        found = interval([fmean(gaps[seed, name] for seed in seeds) for name in names])
    return None if found is None else Difference(found, pairs)


def _loss(run: RunFigures, department: str) -> float:
    loss = run.departments[department]["loss"]
    if loss is None:
        raise ValueError(f"no loss of {department}, wanted one of every department")
    return loss


def read_run(
    run_folder: Path, rounds: int, *, seconds: float | None = None, truth: Mapping[str, int] | None = None
) -> RunFigures:
    """The figures of a finished run.

    Args:
        run_folder: as ``fit`` leaves it.
        rounds: how many it had.
        seconds: how long it took, where that is known.
        truth: {department: true cluster}, for the adjusted Rand index of the last round's clusters.

    Raises:
        InputError: if a file is missing or is not as ``fit`` writes it.
    """
    try:
        found = read_json(run_folder / "federated_eval.json")
        own = _personal(run_folder / "client_eval_all_rounds.json")
        departments = {
            name: {**_global(values["final"]), **own.get(name, dict.fromkeys(PERSONAL))}
            for name, values in found["departments"].items()
        }
        metadata = run_folder / "cluster_metadata"
        figures: Figures = {
            **_global(found["mean"]["final"]),
            **_mean_personal(own.values()),
            **_bytes([metadata / f"round_{number}_aggregation.json" for number in range(1, rounds + 1)]),
            "seconds": seconds,
            **_clusters(metadata / f"round_{rounds}_department_clusters.json", truth),
        }
        return RunFigures(figures, departments, _curve(run_folder / "metrics.csv"))
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{run_folder}: its figures are not as fit writes them ({reason}); wanted them so") from error


def _global(values: Mapping[str, float]) -> Figures:
    return {name: float(values[name]) for name in GLOBAL}


def _personal(path: Path) -> dict[str, Figures]:
    """{department: means over its clients}, each client's newest figures; {} where no client has any."""
    newest: dict[str, dict[str, Any]] = {}
    rounds = read_json(path)["rounds"] if path.is_file() else {}
    for number in sorted(rounds, key=int):
        for department, clients in rounds[number].items():
            newest.setdefault(department, {}).update(clients)
    return {department: _mean_of(clients.values(), GLOBAL) for department, clients in newest.items() if clients}


def _mean_personal(departments: Iterable[Figures]) -> Figures:
    found = list(departments)
    return _mean_of(found, PERSONAL) if found else dict.fromkeys(PERSONAL)


def _mean_of(values: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Figures:
    """Means of loss and accuracy, as personal ones; the perplexity is that of the mean loss."""
    found = list(values)
    loss, accuracy = (fmean(value[name] for value in found) for name in (names[0], names[2]))
    return dict(zip(PERSONAL, (loss, perplexity(loss), accuracy), strict=True))


def _bytes(paths: Sequence[Path]) -> Figures:
    """Sums over rounds; unknown where a round's file is missing."""
    notes = [read_json(path)["bytes"] for path in paths if path.is_file()]
    if len(notes) < len(paths):
        return dict.fromkeys(BYTES)
    sums = [float(sum(note.get(level, 0) for note in notes)) for level in LEVELS]
    return dict(zip(BYTES, (*sums, sums[0] + sums[2], sums[1] + sums[3]), strict=True))


def _clusters(path: Path, truth: Mapping[str, int] | None) -> Figures:
    if not path.is_file():
        return {"clusters": None, "ari": None}
    value = read_json(path)
    known = [name for name in value["assignments"] if name in (truth or {})]
    if truth is None or len(known) < 2:
        return {"clusters": value["n_clusters"], "ari": None}
    from sklearn.metrics import adjusted_rand_score

    labels = [[side[name] for name in known] for side in (truth, value["assignments"])]
    return {"clusters": value["n_clusters"], "ari": float(adjusted_rand_score(*labels))}


def _curve(path: Path) -> dict[int, float]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row["step"]): float(row["eval/loss"]) for row in csv.DictReader(file) if row.get("eval/loss")}
