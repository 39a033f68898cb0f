"""Is kinship by topic found? Every representation, method and rule on federations of six to eight departments.

    python -m benchmarks.methods.cluster_recovery tune_service tune_intents tune_money
        to choose a signal and a rule on
    python -m benchmarks.methods.cluster_recovery held_desks held_tasks held_talk             to report them on
    python -m benchmarks.methods.cluster_recovery dolly flan --show "delta agglomerative dynamic"

Each seed has other records (`benchmarks/methods/federations.py`) and another run. What a seed gave is kept under
--output and not worked out again. Tables: the mean over all federations, and one for each; --show prints the clusters
of one way.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console

from benchmarks.common import markdown, number, write_json
from benchmarks.methods.federations import BUILDERS, build
from benchmarks.methods.grouping import (
    REPRESENTATIONS,
    WAYS,
    Groupings,
    Scores,
    load,
    prepare,
    recover,
    score,
    show,
    ways_without,
)
from fl_lightning.storage.files import read_json


def measured(name: str, seed: int, base: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """{"ari": of every way by round, "found": clusters of every way by round}."""
    place = Path(args.output) / f"{name}_{args.records}x{args.rounds}" / f"seed_{seed}"
    kept = place / "found.json"
    if kept.is_file():
        found: dict[str, Any] = read_json(kept)
        return found
    truth = build(name, place / "data", seed=seed, train=args.records, held_out=args.eval)
    if not base:
        base += prepare()
    data = load(place / "data", base[1], args.records, args.eval)
    watches = recover(base[0], data, args.rounds, [seed], ways_without(args.skip), args.momentum)
    write_json(str(kept), {"ari": score(watches, truth, args.rounds), "found": clusters(watches[0])})
    return read_json(kept)


def clusters(watch: Groupings) -> dict[str, dict[str, list[list[str]]]]:
    """{way: {round: departments that are together}}."""
    found: dict[str, dict[str, list[list[str]]]] = {}
    for (r, *way), labels in watch.found.items():
        together = [sorted(n for n in labels if labels[n] == c) for c in sorted(set(labels.values()))]
        found.setdefault(" ".join(way), {})[str(r)] = together
    return found


def merged(parts: list[Mapping[str, Any]]) -> Scores:
    """The rows of several federations or seeds, one below the other."""
    return {way: [row for part in parts for row in part["ari"][way]] for way in parts[0]["ari"]}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("federations", nargs="+", choices=sorted(BUILDERS))
    parser.add_argument("--show", help="representation, method and rule whose clusters are printed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--eval", type=int, default=8)
    parser.add_argument("--skip", nargs="*", default=[], choices=REPRESENTATIONS, help="cross_loss takes half the time")
    parser.add_argument("--momentum", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="lightning_logs/kinship")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """{federation: what each seed gave}; runs what is missing."""
    torch.set_num_threads(args.threads)
    base: list[Any] = []
    seeds = range(args.first, args.first + args.seeds)
    return {name: [measured(name, seed, base, args) for seed in seeds] for name in args.federations}


def table(groups: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> str:
    """A row for each representation and rule, a column for each federation and for the mean over each group.

    Args:
        groups: {title of the mean: {federation: what each seed gave}}; rows are sorted by the first of the means.
    """
    first = len(next(iter(groups.values())))
    columns = ["representation, rule"]
    for title, federations in groups.items():
        columns += [*(name.partition("_")[2] for name in federations), title]
    found = {}
    for representation, rule in dict.fromkeys((way[0], way[2]) for way in WAYS):
        cells: list[float] = []
        for federations in groups.values():
            own = [mean(parts, f"{representation} agglomerative {rule}") for parts in federations.values()]
            cells += [*own, fmean(own)]
        if not isnan(cells[first]):
            found[f"{representation}, {rule}"] = cells
    rows = sorted(found, key=lambda row: -found[row][first])
    return markdown(columns, [[row, *("–" if isnan(v) else number(v, 2) for v in found[row])] for row in rows])


def mean(parts: list[dict[str, Any]], way: str) -> float:
    """Mean over seeds and rounds of a way's index; not a number where it was left out."""
    return fmean(value for part in parts for value in part["ari"].get(way, [[nan]])[0])


def main() -> None:
    """Measure what is missing, then the tables."""
    args = arguments()
    found = measure(args)
    seeds = range(args.first, args.first + args.seeds)
    for name, parts in found.items():
        show(f"{name}, {args.records} records a client, {len(seeds)} seeds", merged(parts))
    show(f"mean over {', '.join(found)}", merged([part for parts in found.values() for part in parts]))
    for name, parts in found.items() if args.show else ():
        for seed, part in zip(seeds, parts, strict=True):
            aris, own = part["ari"][args.show][0], part["found"][args.show]
            by_round = " ".join(f"{value:.2f}" for value in aris)
            sizes = " ".join(str(len(together)) for together in own.values())
            last = " | ".join(" ".join(together) for together in own[str(args.rounds)])
            Console(width=160).print(
                f"{name}, seed {seed}: ARI {by_round} (mean {fmean(aris):.2f}), clusters {sizes}: {last}"
            )


if __name__ == "__main__":
    main()
