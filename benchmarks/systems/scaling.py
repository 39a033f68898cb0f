"""Seconds a round from few clients to many, and one process against two.

    python -m benchmarks.systems.scaling [--clients 4 40 400] [--records 8] [--repeats 3]

Every run is a process of its own. The number of clients is scaled with small clients (`--records` each); processes are
compared on the bundled clients with 32 records each, all cores to one process or divided between two, in turns, by the
seconds of the rounds after the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.common import fit_command, write_clients, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 40, 400])
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="lightning_logs/benchmarks/scaling.json")
    args = parser.parse_args()
    console, rows, processes = Console(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        table = Table(title="seconds a round, by clients", title_justify="left")
        for column in ("clients", "seconds a round", "milliseconds a client"):
            table.add_column(column, justify="right")
        for count in args.clients:
            data = Path(scratch) / f"data_{count}"
            write_clients(data, count, args.records)
            options = ["--rounds", "2", "--learning-rate", "0.005", "--clients-per-dept", str(count // 4)]
            got = fit_command(data, Path(scratch) / f"out_{count}", *options)
            rows.append({"clients": count, **got})
            seconds = got["last_round_seconds"]
            table.add_row(str(count), f"{seconds:.2f}", f"{1000 * seconds / count:.1f}")
        console.print(table)
        for turn in range(args.repeats):
            options = ["--rounds", "3", "--learning-rate", "0.005", "--max-records", "32"]
            pair = [
                fit_command("bundled:departments", Path(scratch) / f"p{turn}_{n}", *options, "--fabric.devices", str(n))
                for n in (1, 2)
            ]
            processes.append([(got["rounds_seconds"] - got["first_round_seconds"]) / 2 for got in pair])
    ratios = [one / two for one, two in processes]
    table = Table(title="seconds a round, by processes", title_justify="left")
    for column in ("one process", "two processes", "speed-up (median, min, max)"):
        table.add_column(column, justify="right")
    medians = [statistics.median(column) for column in zip(*processes, strict=True)]
    speedup = f"{statistics.median(ratios):.2f}  {min(ratios):.2f}  {max(ratios):.2f}"
    table.add_row(f"{medians[0]:.2f}", f"{medians[1]:.2f}", speedup)
    console.print(table)
    facts = {"cores": os.cpu_count(), "clients": rows, "one_and_two_processes": processes, "speedups": ratios}
    write_json(args.json, {"title": "seconds a round", **facts})


if __name__ == "__main__":
    main()
