"""Every config under configs/methods on the bundled departments: losses, bytes, aggregation error.

    python -m benchmarks.methods.shipped_configs [--rounds 5] [--records 48] [--clients 3] [--only fedavg fedsa_lora]

Held-out loss of the departments' adapters, and of each client's own adapter after its fit; both are means over clients'
records in eval mode. Bytes are those that clients sent over all rounds. Same seed, records and rates for everybody.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import write_json
from fl_lightning.config.parsing import parse_config
from fl_lightning.runs.fit import fit
from fl_lightning.storage.files import read_json

METHODS = Path(__file__).parents[2] / "configs" / "methods"


def measure(path: Path, args: argparse.Namespace, folder: str) -> dict[str, float | None]:
    """One method's figures."""
    sizes = ["--rounds", str(args.rounds), "--max-records", str(args.records), "--clients-per-dept", str(args.clients)]
    config = parse_config(["--config", str(path), *sizes, "--output", f"{folder}/{path.stem}", "--device-map", "cpu"])
    started = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        run_folder = fit(config, console=Console(file=nowhere))
    seconds = time.perf_counter() - started
    final = read_json(run_folder / "federated_eval.json")["mean"]
    own = read_json(run_folder / "client_eval_all_rounds.json")["rounds"].get(str(args.rounds), {})
    losses = [client["loss"] for department in own.values() for client in department.values()]
    notes = [read_json(p) for p in sorted((run_folder / "cluster_metadata").glob("round_*_aggregation.json"))]
    errors = [d["aggregation_error"] for d in notes[-1]["departments"].values()]
    known = [error for error in errors if error is not None]
    return {
        "base": final["base"]["loss"],
        "department": final["final"]["loss"],
        "client": statistics.fmean(losses) if losses else None,
        "KiB up": sum(note["bytes"]["client/up"] for note in notes) / 1024,
        "error": statistics.fmean(known) if known else None,
        "seconds": seconds,
    }


def main() -> None:
    """Run the methods one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of files under configs/methods")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/methods.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    paths = [p for p in sorted(METHODS.glob("*.yaml")) if not args.only or p.stem in args.only]
    with tempfile.TemporaryDirectory(prefix="methods-") as folder:
        rows = {}
        for path in paths:
            rows[path.stem] = measure(path, args, folder)
            write_json(args.json, {"rounds": args.rounds, "records": args.records, "rows": rows})  # it takes its time
    title = f"{args.rounds} rounds, {args.clients} clients a department, {args.records} records a client"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for column in ("department's adapter", "clients' adapters", "KiB up", "aggregation error", "seconds"):
        table.add_column(column, justify="right")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["department"]):
        error = "–" if row["error"] is None else f"{row['error']:.3f}"
        own = "–" if row["client"] is None else f"{row['client']:.3f}"
        table.add_row(name, f"{row['department']:.3f}", own, f"{row['KiB up']:.0f}", error, f"{row['seconds']:.0f}")
    Console().print(table)
    Console().print(f"loss of the base: {next(iter(rows.values()))['base']:.3f}")


if __name__ == "__main__":
    main()
