"""Held-out loss round by round until it falls no more: own adapters, departments, all, and other configs.

    python -m benchmarks.methods.personal_curves conflict even departments [--rounds 32] [--seed 1] [--records 16]
        [--output DIR]

Four or twelve rounds favor whatever is best just then. Every method trains on all records of the same clients, one
epoch a round; the last column has the best round in hindsight. An interrupted call goes on.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.common import markdown
from benchmarks.methods.experiment_arms import CONFIGS, METHODS, write_configs
from benchmarks.methods.federations import CLASSIC, build
from fl_lightning.cli import main as command_line

AVERAGE = "average"
CURVES = {
    "own adapter": ("methods/local_only", "client"),
    "department, FedAvg": ("methods/fedavg", "department"),
    "one average of all, FedAvg": (AVERAGE, "department"),
    "own B, shared A, FedSA-LoRA": ("methods/fedsa_lora", "client"),
    "department, recommended": ("recommended", "department"),
    "department, default": ("default", "department"),
    "all records in one place": ("methods/central", "department"),
}
"""{row: (config, whose adapters on whose held-out records)}."""


def losses(metrics: Path, whose: str) -> dict[int, float]:
    """{round: mean held-out loss} of departments' adapters, or of clients' own ones after their fits."""
    slashes = {"department": 2, "client": 3}[whose]
    curve = {}
    with metrics.open(newline="") as lines:
        for line in csv.DictReader(lines):
            names = [name for name in line if name.endswith("/eval/loss") and name.count("/") == slashes]
            values = [float(line[name]) for name in names if line[name]]
            if values:
                curve[int(line["step"])] = fmean(values)
    return curve


def fitted(name: str, data: str, place: Path, args: argparse.Namespace) -> Path:
    """The metrics of a run, which is begun, continued, or finished already."""
    (config,) = write_configs(place, [name]) if name in METHODS else [str(CONFIGS / f"{name}.yaml")]
    folder = place / Path(name).name
    start = ["--resume", str(folder / "version_0")] if (folder / "version_0").is_dir() else ["--config", config]
    options = ["--data", data, "--seed", args.seed, "--rounds", args.rounds, "--max-records", args.records]
    options += ["--logging.samples", 0, "--retention.client_exports", 1, "--output", folder]
    if code := command_line([str(word) for word in ("fit", *start, *options)]):
        sys.exit(code)
    return folder / "version_0" / "metrics.csv"


def table(arm: str, args: argparse.Namespace) -> str:
    """One row a method, one column a round."""
    place = Path(args.output) / arm / f"seed_{args.seed}"
    data = "bundled:departments"
    if arm != "departments":
        data = str(place / "data")
        if not (place / "data" / "structure.json").is_file():
            build(arm, place / "data", seed=args.seed, train=args.records, held_out=args.eval, classic=args.classic)
    shown = [r for r in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64) if r <= args.rounds]
    rows = []
    for row, (name, whose) in CURVES.items():
        curve = losses(fitted(name, data, place, args), whose)
        best = min((r for r in curve if r), key=curve.__getitem__)
        rows.append([row, *(f"{curve[r]:.3f}" for r in shown), f"{curve[best]:.3f} ({best})"])
    return markdown((f"{arm}, round", *map(str, shown), "lowest (round)"), rows)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or other words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--eval", type=int, default=12)
    parser.add_argument("--output", default="lightning_logs/personal_curves")
    parser.add_argument("--classic", type=Path, default=CLASSIC)
    return parser.parse_args(argv)


def main() -> None:
    """A table for each federation."""
    args = arguments()
    for arm in args.arms:
        print(table(arm, args), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
