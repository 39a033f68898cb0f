"""Tables of what clients gain by choosing their level, from the figures of `benchmarks/methods/personal_levels.py`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.common import markdown, number
from fl_lightning.runs.artifacts import PERSONAL_LOSSES
from fl_lightning.runs.personalize import HURT

SUMMARY = {
    "base, for all": "base",
    "default": "`default`, its department's",
    "central": "all records in one place",
    "root, for all": "FedAvg, one average of all",
    "fedsa_lora": "FedSA-LoRA, own B with the shared A",
    "apfl": "APFL",
    "fedalt": "FedALT",
    "ditto": "Ditto",
    "own, stopped": "own adapter, stopped early and refitted",
    "ensemble of three own": "three own adapters of three seeds, predictions averaged",
    "department, for all": "FedAvg, its department's",
    "recommended": "`recommended`, its department's",
    "level, one own adapter": "**level**",
    "mixture, one own adapter": "**mixture**",
    "adapter, one own adapter": "**one adapter** of it",
    "level": "**level**, two own adapters",
    "mixture": "**mixture**, two own adapters",
    "adapter": "**one adapter** of it, two own adapters",
    "level, strangers' records": "control: level, chosen by strangers' records",
    "mixture, strangers' records": "control: mixture, chosen by strangers' records",
}
"""Rows of `summary`, in their order: {name in `columns_of`: what the table calls it}."""


def columns_of(seeds: list[dict[str, Any]]) -> dict[str, list[float]]:
    """{thing that a client could take: held-out losses of all clients of all seeds}."""
    columns: dict[str, list[float]] = {}
    for figures in seeds:
        clients = figures["clients"]
        for level in set.intersection(*(set(values) for values in figures["by_level"].values())) - {"own"}:
            name = level if level.startswith("own") else f"{level}, for all"
            columns.setdefault(name, []).extend(v[level] for v in figures["by_level"].values())
        for kind in PERSONAL_LOSSES:
            columns.setdefault(kind, []).extend(values[kind] for values in clients.values())
        for way, losses in figures["ways"].items() if all(f["ways"] for f in seeds) else ():
            columns.setdefault(f"one adapter, {way}", []).extend(losses.values())
        for kind in PERSONAL_LOSSES[1:] if all(f.get("one_own") for f in seeds) else ():
            columns.setdefault(f"{kind}, one own adapter", []).extend(v[kind] for v in figures["one_own"].values())
        columns.setdefault("mixture, mean root", []).extend(figures["mean_root"].values())
        columns.setdefault("ensemble of three own", []).extend(figures["ensemble"].values())
        for method, losses in figures["rivals"].items():
            columns.setdefault(method, []).extend(losses.values())
        for kind in ("level", "mixture"):
            columns.setdefault(f"{kind}, strangers' records", []).extend(figures["strangers"][kind].values())
    return {name: losses for name, losses in columns.items() if len(losses) == len(columns["own"])}


def against_own(columns: Mapping[str, list[float]], name: str) -> tuple[float, int, float]:
    """What a thing gains over the own adapter: the mean, the number of clients that are hurt, the worst one."""
    gains = [loss - alone for loss, alone in zip(columns[name], columns["own"], strict=True)]
    return fmean(gains), sum(gain > HURT for gain in gains), max(gains)


def rows(seeds: list[dict[str, Any]]) -> list[list[str]]:
    """One row for each thing that a client could take: mean loss, against own, clients hurt, the worst one."""
    columns = columns_of(seeds)
    table = []
    for name, losses in sorted(columns.items(), key=lambda item: fmean(item[1])):
        gain, hurt, worst = against_own(columns, name)
        table.append([name, number(fmean(losses)), f"{gain:+.3f}", f"{hurt} of {len(losses)}", f"{worst:+.2f}"])
    return table


def summary(arms: Mapping[str, list[dict[str, Any]]]) -> str:
    """One table over several federations.

    Args:
        arms: {federation, as its column is called: figures of its seeds}, with two own adapters.

    Returns:
        A row for each thing that a client could take, with its mean loss against the client's own adapter, the share
        of clients that lose more than 0.02, and the worst one.
    """
    columns = {title: columns_of(seeds) for title, seeds in arms.items()}
    table = [["own adapter", *(f"{fmean(c['own']):.3f}" for c in columns.values())]]
    for name, what in SUMMARY.items():
        if any(name in c for c in columns.values()):
            table.append([what, *(_cell(c, name) for c in columns.values())])
    return markdown(("held-out loss, mean over clients", *columns), table)


def _cell(columns: Mapping[str, list[float]], name: str) -> str:
    if name not in columns:
        return "–"
    gain, hurt, worst = against_own(columns, name)
    return f"{gain:+.3f} ({hurt} of {len(columns['own'])}, {worst:+.2f})".replace("-", "−")
