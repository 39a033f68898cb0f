"""Rounds that each server step needs to reach the loss that plain averaging has after a few rounds.

    python -m benchmarks.methods.server_steps [--rounds 40] [--records 16] [--clients 3] [--target-round 3]

The mean held-out loss of the departments' adapters is looked at after every round; the run of a step ends when it is at
or below that of `fedavg` in `--target-round`, or after `--rounds`. Same seed, records and rates for everybody; neither
clients nor departments are clustered.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import write_json
from fl_lightning.config.parsing import parse_config
from fl_lightning.runs.fit import fit

STEPS = {
    "fedavg": ["--federation.combiner=fedavg"],
    "momentum 0.1": ["--federation.flora.momentum=0.1"],
    "momentum 0.3": ["--federation.flora.momentum=0.3"],
    "momentum 1.0": ["--federation.flora.momentum=1.0"],
    "linear 1.0 to 0.1": ["--federation.flora.momentum=1.0", "--federation.server={schedule: linear, end: 0.1}"],
    "cosine 1.0 to 0.1": ["--federation.flora.momentum=1.0", "--federation.server={schedule: cosine, end: 0.1}"],
    "agreement 1.0": ["--federation.flora.momentum=1.0", "--federation.server={schedule: agreement}"],
    "fedavgm 0.1": ["--federation.flora.momentum=0.1", "--federation.server={step: fedavgm}"],
    "fedavgm 0.3": ["--federation.flora.momentum=0.3", "--federation.server={step: fedavgm}"],
    "fedadam 0.01": ["--federation.flora.momentum=0.01", "--federation.server={step: fedadam}"],
    "fedadam 0.03": ["--federation.flora.momentum=0.03", "--federation.server={step: fedadam}"],
    "fedyogi 0.01": ["--federation.flora.momentum=0.01", "--federation.server={step: fedyogi}"],
    "fedyogi 0.03": ["--federation.flora.momentum=0.03", "--federation.server={step: fedyogi}"],
    "fedadagrad 0.03": ["--federation.flora.momentum=0.03", "--federation.server={step: fedadagrad}"],
}


def losses(arguments: list[str], args: argparse.Namespace, folder: str, target: float) -> list[float]:
    """Mean held-out loss after each round, until the target is reached; longer runs go on from shorter ones."""
    sizes = ["--max-records", str(args.records), "--clients-per-dept", str(args.clients), "--learning-rate", "5e-3"]
    alone = ["--num-clusters", "1", "--no-dept-clustering", "--device-map", "cpu", "--output", folder]
    found: list[float] = []
    resume = None
    for rounds in range(args.target_round, args.rounds + 1):
        config = parse_config([*sizes, *alone, *arguments, "--rounds", str(rounds)])
        with open(os.devnull, "w") as nowhere:
            resume = fit(config, resume=resume, console=Console(file=nowhere))
        with open(Path(str(resume)) / "metrics.csv", newline="") as file:
            found = [float(row["eval/loss"]) for row in csv.DictReader(file) if row.get("eval/loss")][1:]
        if found[-1] <= target:
            break
    return found


def main() -> None:
    """Run the steps one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--target-round", type=int, default=3)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of steps besides fedavg")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/server_steps.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="steps-") as folder:
        plain = losses(STEPS["fedavg"], args, f"{folder}/fedavg", float("inf"))
        target = plain[args.target_round - 1]
        rows = {"fedavg": plain}
        for name, arguments in STEPS.items():
            if name != "fedavg" and (not args.only or name in args.only):
                rows[name] = losses(arguments, args, f"{folder}/{name.replace(' ', '_')}", target)
                write_json(args.json, {"target": target, "records": args.records, "rows": rows})  # it takes its time
    table = Table(title=f"rounds to a loss of {target:.3f}", title_justify="left")
    for column in ("server step", "rounds", f"loss after round {args.target_round}", "loss at the end"):
        table.add_column(column, justify="left" if column == "server step" else "right")
    for name, own in rows.items():
        reached = next((str(i) for i, loss in enumerate(own, 1) if loss <= target), f"not in {len(own)}")
        table.add_row(name, reached, f"{own[args.target_round - 1]:.3f}", f"{own[-1]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
