"""Does it pay to mix departments, and in which clusters? Federations with a known answer, methods paired by seed.

    python -m benchmarks.methods.experiment_arms conflict control [--seeds 3] [--first 1] [--rounds 5]
        [--records 32] [--output DIR]
    python -m benchmarks.methods.experiment_arms even --methods average fedavg clusters clusters_03
    python -m benchmarks.methods.experiment_arms flan dolly --rounds 3 --records 12 --eval 6 --against fedavg
    python -m benchmarks.methods.experiment_arms conflict_turned --methods average fedavg clusters --rounds 12
        --local-epochs 2

Each seed has a separate federation (`benchmarks/methods/federations.py`), in which `python -m fl_lightning compare`
runs all methods with that seed; an interrupted arm goes on when it is asked for again. The table is Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from sklearn.metrics import adjusted_rand_score

from benchmarks.common import markdown, number, shown
from benchmarks.methods.federations import BUILDERS, build
from fl_lightning.cli import main as command_line
from fl_lightning.data.layout import true_clusters
from fl_lightning.runs.comparison.plan import read_plan
from fl_lightning.runs.comparison.runner import collect
from fl_lightning.runs.comparison.statistics import Interval, RunMetrics, interval, over_seeds
from fl_lightning.storage.files import read_json

CONFIGS = Path(__file__).parents[2] / "configs"
AVERAGE = {"enabled": True, "method": "agglomerative", "select": "fixed", "min_clusters": 1, "max_clusters": 1}
CLUSTERS = {"enabled": True, "method": "agglomerative", "select": "dynamic", "min_clusters": 1}
METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "average": ("methods/fedavg", {**AVERAGE, "mixing_ratio": 1.0, "mix": "all"}),
    "fedavg": ("methods/fedavg", None),
    "clusters": ("methods/fedavg", {**CLUSTERS, "mixing_ratio": 1.0, "mix": "all"}),
    "clusters_03": ("methods/fedavg", {**CLUSTERS, "mixing_ratio": 0.3, "mix": "all"}),
    "local_only": ("methods/local_only", None),
    "share_a": ("methods/fedsa_lora", None),
    "share_a_clusters": ("methods/fedsa_lora", {**CLUSTERS, "mixing_ratio": 1.0, "mix": "a"}),
    "recommended": ("recommended", None),
}
"""{name: (config, dept_clusters)}; the first is plain averaging over all departments."""
TITLES = {
    "average": "fedavg, one average of all departments",
    "fedavg": "fedavg, not mixed",
    "clusters": "fedavg, mixed fully in `dynamic` clusters",
    "clusters_03": "fedavg, `dynamic` clusters, mixing ratio 0.3",
    "local_only": "local only",
    "share_a": "share a, not mixed",
    "share_a_clusters": "share a, `dynamic` clusters",
    "recommended": "recommended",
}
FEW = ("average", "fedavg", "clusters")
Runs = dict[str, dict[int, RunMetrics]]
Found = dict[str, dict[int, list[dict[str, Any]]]]


def run_arm(arm: str, methods: list[str], seed: int, args: argparse.Namespace) -> Path:
    """One seed's comparison: its folder."""
    place = Path(args.output) / arm / f"seed_{seed}"
    if not (place / "data" / "structure.json").is_file():
        build(arm, place / "data", seed=seed, train=args.records, held_out=args.eval)
    sizes = f"--rounds {args.rounds} --local-epochs {args.local_epochs} --seeds 1 --seed {seed}".split()
    sizes += ["--data", str(place / "data")]
    command = ["--resume", "last"] if (place / "compare_0").is_dir() else ["--config", *write_configs(place, methods)]
    command += [] if command[0] == "--resume" else sizes
    if code := command_line(["compare", *command, "--output", str(place)]):
        sys.exit(code)
    return place / "compare_0"


def write_configs(place: Path, methods: list[str]) -> list[str]:
    """A file for each method."""
    paths = []
    for name in methods:
        config, clusters = METHODS[name]
        values = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
        if clusters:
            values["federation"]["dept_clusters"] = clusters
        values["logging"] = {"loggers": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}]}
        path = place / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        paths.append(str(path))
    return paths


def gaps(first: Mapping[int, RunMetrics], other: Mapping[int, RunMetrics]) -> tuple[Interval | None, Interval | None]:
    """(loss after the last round, mean loss over the rounds) of `other` minus that of `first`, paired by seed."""

    def last(run: RunMetrics) -> float:
        return run.curve[max(run.curve)]

    def over_rounds(run: RunMetrics) -> float:
        return fmean(loss for number, loss in run.curve.items() if number)

    seeds = sorted(first.keys() & other.keys())
    after, over = (interval([f(other[s]) - f(first[s]) for s in seeds]) for f in (last, over_rounds))
    return after, over


def clusters(folder: Path, name: str, seed: int, truth: Mapping[str, int]) -> list[dict[str, Any]]:
    """Of each round: departments that were mixed together, and their adjusted Rand index."""
    metadata = folder / name / f"seed_{seed}" / "version_0" / "cluster_metadata"
    found = []
    for path in sorted(metadata.glob("round_*_department_clusters.json"), key=lambda p: int(p.name.split("_")[1])):
        own = read_json(path)["assignments"]
        ari = adjusted_rand_score([truth[n] for n in sorted(truth)], [own[n] for n in sorted(truth)])
        found.append(
            {"ari": float(ari), "together": [sorted(n for n in own if own[n] == c) for c in set(own.values())]}
        )
    return found


def measured(arm: str, args: argparse.Namespace) -> tuple[Runs, Found]:
    """Run what is missing of an arm: the figures of every method and seed, and what `dynamic` found there."""
    methods = args.methods or list(METHODS if arm.startswith("con") else FEW)
    runs: Runs = {name: {} for name in methods}
    found: Found = {}
    for seed in range(args.first, args.first + args.seeds):
        folder = run_arm(arm, methods, seed, args)
        collected = collect(folder, read_plan(folder))
        truth = true_clusters(folder.parent / "data") or {}
        for name in methods:
            runs[name][seed] = collected.runs[name][seed]
            if CLUSTERS["select"] == (METHODS[name][1] or {}).get("select"):
                found.setdefault(name, {})[seed] = clusters(folder, name, seed, truth)
    return runs, found


def table(arm: str, runs: Runs, found: Found, against: str) -> str:
    """One row a method, the lowest loss first; the mean loss of the base is in the head."""

    def cell(value: Interval | None, signed: bool = False) -> str:
        return shown(asdict(value) if value else None, signed)

    base = interval([run.curve[0] for run in next(iter(runs.values())).values()])
    head = f"{arm} (base {number(base.mean) if base else '–'})"
    gap = f"against {TITLES[against].removeprefix('fedavg, ')}"
    rows = []
    for name in sorted(runs, key=lambda n: fmean(run.curve[max(run.curve)] for run in runs[n].values())):
        after, over = gaps(runs[against], runs[name])
        own = [cell(over_seeds(runs[name].values(), key)) for key in ("loss", "personal_loss")]
        last = [rounds[-1] for rounds in found.get(name, {}).values()]
        groups = "–"
        if last:
            groups = f"{fmean(len(r['together']) for r in last):.1f}, {number(fmean(r['ari'] for r in last), 2)}"
        both = ["0", "0"] if name == against else [cell(after, True), cell(over, True)]
        rows.append([TITLES[name], *own, *both, groups])
    return markdown(
        (head, "departments' adapters", "clients' own", gap, "the same, mean over rounds", "clusters, ARI"), rows
    )


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", choices=sorted(BUILDERS))
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), help="default: all, or three for dolly, flan")
    parser.add_argument("--against", default="average", choices=sorted(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--eval", type=int, default=8)
    parser.add_argument("--output", default="lightning_logs/arms")
    return parser.parse_args(argv)


def tables(args: argparse.Namespace) -> dict[str, str]:
    """Run the arms: {arm: its table}. What `dynamic` found in each seed is printed."""
    made = {}
    for arm in args.arms:
        runs, found = measured(arm, args)
        made[arm] = table(arm, runs, found, args.against)
        for name, seeds in found.items():
            for seed, rounds in seeds.items():
                aris = " ".join(f"{r['ari']:.2f}" for r in rounds)
                print(f"- {arm}, {name}, seed {seed}: ARI by round {aris}; last: {rounds[-1]['together']}")
    return made


if __name__ == "__main__":
    print(*tables(arguments()).values(), sep="\n\n")
