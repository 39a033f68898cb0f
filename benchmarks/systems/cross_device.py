"""What a round and a start cost with 1,000, 10,000 and 100,000 clients in the data, of whom few are asked.

    python -m benchmarks.systems.cross_device [--clients 1000 10000 100000] [--asked 64] [--form folders]

Clients have two training records and one held-out record of the bundled departments. Every run is a process of its own:
the first of a size starts cold, without a token store, the others warm, with that of the first. Seconds of CPU are
beside those of the clock, since they say more on a machine that others use too; a round's are the difference of two
runs, with one round and with `--rounds`. Further arguments are passed on to ``fit``. The ratios are those of the
largest federation over the smallest, measured one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.common import fit_command, write_json

RECORDS = 3
"""Of a client: the last one is held out."""


def clients(count: int) -> Iterator[tuple[str, str, list[str]]]:
    """(department, client, its lines) of `count` clients, in turn from the bundled departments."""
    from fl_lightning.bundled import resolve

    sources = sorted(Path(resolve("bundled:departments")).glob("*/"))
    piles = {
        folder.name: [line for file in sorted(folder.glob("*/train.jsonl")) for line in file.read_text().splitlines()]
        for folder in sources
    }
    for index in range(count):
        name = sources[index % len(sources)].name
        number, pile = index // len(sources), piles[name]
        lines = [pile[(number * RECORDS + k) % len(pile)] for k in range(RECORDS)]
        yield name.removesuffix("_personal_clients"), f"client_{number}", lines


def write_folders(root: Path, count: int) -> Path:
    """A folder for every client, with train.jsonl and eval.jsonl."""
    for department, client, lines in clients(count):
        folder = root / department / client
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
        (folder / "eval.jsonl").write_text(lines[-1] + "\n")
    return root


def write_file(root: Path, count: int) -> Path:
    """One JSONL file with the columns department and client, the records of a client not together."""
    root.mkdir()
    everybody = list(clients(count))
    with (root / "records.jsonl").open("w") as file:
        for k, (department, client, lines) in itertools.product(range(RECORDS), everybody):
            file.write(json.dumps({"department": department, "client": client, **json.loads(lines[k])}) + "\n")
    return root / "records.jsonl"


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def measure(data: Path, scratch: Path, rounds: int, arguments: list[str]) -> dict[str, Any]:
    """Figures of cold and warm runs on the same data."""
    cache = scratch / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    cold, warm, several = (
        fit_command(data, scratch / f"out_{turn}", "--rounds", str(count), *arguments)
        for turn, count in enumerate((1, 1, rounds))
    )
    cpu_round = (several["cpu_seconds"] - warm["cpu_seconds"]) / (rounds - 1)
    return {
        "start_cold_seconds": cold["start_seconds"],
        "start_warm_seconds": warm["start_seconds"],
        "round_seconds": statistics.median(several["later_rounds"]),
        "start_cold_cpu": cold["cpu_seconds"] - cpu_round,
        "start_warm_cpu": warm["cpu_seconds"] - cpu_round,
        "round_cpu": cpu_round,
        "peak_mib": several["peak_mib"],
        "data_mib": bytes_of(data) / 2**20,
        "run_mib": bytes_of(scratch / "out_2") / 2**20,
        "store_mib": bytes_of(cache) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--asked", type=int, default=64, help="clients in a round, a quarter of each department's")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--form", choices=("folders", "file"), default="folders")
    parser.add_argument("--json", default="lightning_logs/benchmarks/cross_device.json")
    args, more = parser.parse_known_args()
    options = {
        "--learning-rate": 0.005,
        "--clients-per-dept": "all",
        "--federation.clients_per_round": args.asked // 4,
        "--logging.samples": 0,
    }
    arguments = [*(str(part) for pair in options.items() for part in pair), *more]
    rows: dict[int, dict[str, Any]] = {}
    table = Table(title=f"{args.asked} clients asked in a round, {args.form}", title_justify="left")
    columns = ("start cold, s", "warm, s", "a round, s", "cold, CPU s", "warm, CPU s", "a round, CPU s")
    for column in ("clients", *columns, "peak, MiB", "data, MiB", "run, MiB", "store, MiB"):
        table.add_column(column, justify="right")
    for count in args.clients:
        scratch = Path(tempfile.mkdtemp(prefix="cross_device_"))
        try:
            started = time.perf_counter()
            data = (write_folders if args.form == "folders" else write_file)(scratch / "data", count)
            rows[count] = {
                "written_seconds": time.perf_counter() - started,
                **measure(data, scratch, args.rounds, arguments),
            }
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        figures = [rows[count][key] for key in list(rows[count])[1:]]
        table.add_row(f"{count:,}", *(f"{figure:,.2f}" for figure in figures))
    Console(width=150).print(table)
    first, last = rows[min(rows)], rows[max(rows)]
    ratios = {key: last[key] / first[key] for key in ("round_seconds", "round_cpu", "peak_mib")}
    for key, ratio in ratios.items():
        Console().print(f"{key}, {max(rows):,} clients over {min(rows):,}: {ratio:.2f}")
    facts = {"asked": args.asked, "form": args.form, "cores": os.cpu_count(), "arguments": arguments}
    write_json(args.json, {"title": "cross_device", **facts, "rows": rows, "ratios": ratios})


if __name__ == "__main__":
    main()
