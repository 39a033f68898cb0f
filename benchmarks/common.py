"""What benchmarks share: contestants that alternate (ratios of neighbours stand noise), processes, files, tables."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def alternate(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each repeat, after one uncounted turn of everybody."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def report(
    title: str, seconds: Mapping[str, list[float]], against: str, facts: Mapping[str, Any], json_to: str
) -> None:
    """A table of medians and of median pairwise speed-ups over `against`, on the terminal and as JSON."""
    table = Table(title=title, title_justify="left")
    for column in ("contestant", "seconds (median)", f"speed-up over {against} (median, min, max)"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    rows = {}
    for name, own in seconds.items():
        ratios = [base / mine for base, mine in zip(seconds[against], own, strict=True)]
        rows[name] = {"seconds": own, "median": statistics.median(own), "speedup": statistics.median(ratios)}
        table.add_row(
            name,
            f"{statistics.median(own):.3f}",
            f"{statistics.median(ratios):.2f}  {min(ratios):.2f}  {max(ratios):.2f}",
        )
    Console().print(table)
    for key, value in facts.items():
        Console().print(f"{key}: {value}")
    write_json(json_to, {"title": title, "against": against, "rows": rows, **facts})


def write_clients(root: Path, count: int, records: int) -> None:
    """`count` clients in the four bundled departments, each with `records` of the real records and one to evaluate."""
    from fl_lightning.bundled import resolve

    sources = sorted(Path(resolve("bundled:departments")).glob("*/"))
    for index in range(count):
        source = sources[index % len(sources)]
        files = sorted(source.glob("*/train.jsonl"))
        lines = files[index // len(sources) % len(files)].read_text().splitlines()
        first = (index // len(sources) * records) % max(1, len(lines) - records - 1)
        folder = root / source.name / f"client_{index // len(sources)}"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("\n".join(lines[first : first + records]) + "\n")
        (folder / "eval.jsonl").write_text(lines[first + records] + "\n")


def fit_command(data: Path | str, output: Path, *arguments: str) -> dict[str, Any]:
    """Run ``fit`` in a process of its own.

    Returns:
        Its "seconds", of which "start_seconds" before the first round, "rounds_seconds" in rounds, with those of the
        first and last one and of all "later_rounds"; its "cpu_seconds"; and "peak_mib".
    """
    command = [sys.executable, "-m", "fl_lightning", "fit", "--data", str(data), "--output", str(output), *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed, rounds, first_ended = [], [], started
    for line in process.stdout:
        printed.append(line)
        if found := re.search(r"round \d+ of \d+ · ([\d.]+) s", line):
            rounds.append(float(found[1]))
            first_ended = time.perf_counter() if len(rounds) == 1 else first_ended
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{''.join(printed)[-3000:]}")
    return {
        "seconds": time.perf_counter() - started,
        "start_seconds": first_ended - started - rounds[0],
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "later_rounds": rounds[1:],
        "rounds_seconds": sum(rounds),
        "first_round_seconds": rounds[0],
        "last_round_seconds": rounds[-1],
        "peak_mib": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024),
    }


def write_json(path: str, value: Any) -> None:
    """The figures of a benchmark on disk, whole or not at all."""
    from fl_lightning.storage.files import write_text

    write_text(Path(path), json.dumps(value, indent=1) + "\n")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(r)} |" for r in rows)]
    )


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """A figure with so many digits and a minus sign that is one."""
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def shown(interval: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A mean with half its interval, {"mean", "half_width"}; a dash where there is none."""
    if interval is None or interval["mean"] is None:
        return "–"
    mean, half = number(interval["mean"], signed=signed), interval["half_width"]
    return mean if half is None else f"{mean} ± {half:.3f}"


def put_table(document: Path, name: str, table: str) -> None:
    """Put a table into a Markdown file, between its two marks, which must be there."""
    start, end = f"<!-- table {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = document.read_text().partition(start)
    if not found or end not in rest:
        raise SystemExit(f"{document}: no {start.strip()} … {end}, wanted both where the table belongs")
    document.write_text(f"{before}{start}{table.rstrip()}\n{end}{rest.partition(end)[2]}")
