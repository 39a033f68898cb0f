"""Alternating contestants in one run: shared machines are noisy, ratios of neighbours are not."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
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
    path = Path(json_to)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": title, "against": against, "rows": rows, **facts}, indent=1) + "\n")
