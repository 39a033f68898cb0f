"""Peak memory of a run from few clients to many, each with records of its own: flat is the aim.

    python -m benchmarks.systems.memory [--clients 20 200 1000] [--records 4] [--share all a]

Every run is a process of its own (two rounds, with evaluation, exports and checkpoints); its peak is what the system
says of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.common import fit_command, write_clients, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--records", type=int, default=4)
    parser.add_argument("--share", nargs="+", default=["all", "a"], choices=["all", "a"])
    parser.add_argument("--json", default="lightning_logs/benchmarks/memory.json")
    args = parser.parse_args()
    table = Table(title="peak memory of a run", title_justify="left")
    for column in ("share", "clients", "peak MiB", f"over {args.clients[0]} clients", "seconds a round"):
        table.add_column(column, justify="right")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for share in args.share:
            first = None
            for count in args.clients:
                data = Path(scratch) / f"data_{count}"
                if not data.exists():
                    write_clients(data, count, args.records)
                options = ["--rounds", "2", "--learning-rate", "0.005", "--federation.share", share]
                got = fit_command(
                    data, Path(scratch) / f"{share}_{count}", *options, "--clients-per-dept", str(count // 4)
                )
                first = first or got["peak_mib"]
                rows.append({"share": share, "clients": count, "over_first": got["peak_mib"] / first, **got})
                cells = (f"{got['peak_mib']:.0f}", f"{got['peak_mib'] / first:.2f}", f"{got['last_round_seconds']:.1f}")
                table.add_row(share, str(count), *cells)
    Console().print(table)
    write_json(args.json, {"title": "peak memory of a run", "records": args.records, "rows": rows})


if __name__ == "__main__":
    main()
