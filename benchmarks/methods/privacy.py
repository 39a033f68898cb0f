"""Loss against ε: DP-FedAvg at several noise multipliers, many clients in one department, B alone at rank 4.

    python -m benchmarks.methods.privacy [--clients 64] [--rounds 5] [--multipliers 0.5 1 2 4] [--shares]

The fewer numbers are sent and the more clients send them, the less noise is in their mean. Clipping alone and the plain
mean stand beside them. ε is that of the last round at δ = 1e-5; the noise has a seed. With `--shares` clients add
the noise themselves as well, under secure aggregation.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import write_clients, write_json
from fl_lightning.config.parsing import parse_config
from fl_lightning.runs.fit import fit
from fl_lightning.storage.files import read_json

PLAIN = "--federation={share: freeze_a, combiner: fedavg, weighting: uniform}"


def measure(
    multiplier: float | None, args: argparse.Namespace, root: Path, folder: str, *, in_shares: bool = False
) -> dict[str, float | None]:
    """Held-out loss before and after, ε, the share of updates that were clipped in the last round."""
    sizes = ["--rounds", str(args.rounds), "--max-records", str(args.records), "--clients-per-dept", str(args.clients)]
    alone = ["--num-clusters", "1", "--no-dept-clustering", "--device-map", "cpu", "--output", folder]
    rank = ["--lora-r", "4", "--lora-alpha", "16", "--learning-rate", "2e-2", "--local-epochs", str(args.epochs)]
    private = []
    if multiplier is not None:
        numbers = f"{{clip: {args.clip}, noise_multiplier: {multiplier}, noise_seed: {args.noise_seed}}}"
        private = ["--federation.guard.name=dp", f"--federation.privacy={numbers}"]
    if in_shares:
        private.append("--federation.secure_aggregation=true")
    config = parse_config(["--data", str(root), *sizes, *alone, *rank, PLAIN, *private])
    with open(os.devnull, "w") as nowhere:
        run_folder = fit(config, console=Console(file=nowhere))
    mean = read_json(Path(str(run_folder)) / "federated_eval.json")["mean"]
    notes = read_json(Path(str(run_folder)) / f"cluster_metadata/round_{args.rounds}_aggregation.json")["departments"]
    (own,) = notes.values()
    return {
        "base": mean["base"]["loss"],
        "loss": mean["final"]["loss"],
        "epsilon": own["epsilon"],
        "clipped": None if in_shares else len(own["scaled"]) / args.clients,
    }


def main() -> None:
    """Run the multipliers one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--clip", type=float, default=3.0)
    parser.add_argument("--multipliers", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--noise-seed", type=int, default=7)
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/privacy.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="privacy-") as folder:
        root = Path(folder) / "data"
        write_clients(root, args.clients, args.records)
        everybody = root / "everybody"
        for client in sorted(root.glob("*/*")):
            target = everybody / f"{client.parent.name}_{client.name}"
            target.parent.mkdir(exist_ok=True)
            client.rename(target)
        for department in root.iterdir():
            if department != everybody:
                department.rmdir()
        rows: dict[str, dict[str, float | None]] = {}
        for name, multiplier in (
            ("plain mean", None),
            ("clipping alone", 1e-9),
            *((str(z), z) for z in args.multipliers),
        ):
            rows[name] = measure(multiplier, args, root, f"{folder}/{len(rows)}")
            write_json(args.json, {"arguments": vars(args), "rows": rows})  # it takes its time
            if args.shares and multiplier is not None and multiplier > 1e-3:
                rows[f"{name} in shares"] = measure(multiplier, args, root, f"{folder}/{len(rows)}", in_shares=True)
                write_json(args.json, {"arguments": vars(args), "rows": rows})
    title = f"{args.clients} clients, {args.records} records each, {args.rounds} rounds, clip {args.clip}"
    table = Table(title=title, title_justify="left")
    for column in ("noise multiplier", "ε", "loss", "clipped"):
        table.add_column(column, justify="left" if column == "noise multiplier" else "right")
    for name, row in rows.items():
        epsilon = row["epsilon"]
        shown = "∞" if epsilon is None or epsilon > 1e4 else f"{epsilon:.2f}"
        table.add_row(name, shown, f"{row['loss']:.3f}", "" if row["clipped"] is None else f"{row['clipped']:.0%}")
    Console().print(table)
    Console().print(f"loss of the base: {next(iter(rows.values()))['base']:.3f}")


if __name__ == "__main__":
    main()
