"""Prints an inspection: a table of clients, then errors and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_lightning.data.inspection.checks import ClientSummary, Inspection

MAX_LINES = 10
"""Of a kind that are printed; ``--json`` has all."""
CAPTION = """mean, max: tokens of a record
twice, shared: training records that the client has more than once, that another client has too
leaks, prompts: held-out records that are trained on, those of which only the prompt is"""


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print a table of clients and the findings."""
    if inspection.clients:
        console.print(make_table(inspection))
        console.print(CAPTION, highlight=False, soft_wrap=True)
    if inspection.excluded or inspection.excluded_records:
        names = ", ".join(inspection.excluded[:MAX_LINES])
        more = f" and {len(inspection.excluded) - MAX_LINES:,} more" if len(inspection.excluded) > MAX_LINES else ""
        console.print(
            f"left out: {names or 'no client'}{more}; records: {inspection.excluded_records:,}", soft_wrap=True
        )
    if inspection.canaries:
        console.print(
            f"canaries: fit makes {inspection.canaries:,} for each client, about half of which become training records "
            "besides those above",
            soft_wrap=True,
        )
    leaks = {
        what: [f"{leak['eval']} = {_locations(leak['train'])}" for leak in inspection.leaks if leak["what"] == what]
        for what in ("record", "prompt")
    }
    for style, what, lines in (
        ("bold red", "errors", inspection.errors),
        ("yellow", "held out and trained on", leaks["record"]),
        ("yellow", "prompt held out and trained on", leaks["prompt"]),
        ("yellow", "trained on more than once", [_locations(locations) for locations in inspection.duplicates]),
        ("yellow", "warnings", inspection.warnings),
    ):
        if not lines:
            continue
        console.print(f"\n[{style}]{what}[/] ({len(lines):,})", highlight=False)
        for line in lines[:MAX_LINES]:
            console.print(f"  {escape(line.replace(f'{inspection.folder}/', ''))}", highlight=False, soft_wrap=True)
        if len(lines) > MAX_LINES:
            console.print(f"  and {len(lines) - MAX_LINES:,} more, see --json", highlight=False)
    if not (inspection.errors or inspection.warnings):
        console.print("\nNothing is wrong.")


def make_table(inspection: Inspection) -> Table:
    """A row for each client under a row for its department."""
    rows = Table(title=inspection.root, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    rows.add_column("", overflow="fold")
    for name in ("train", "eval", "mean", "max", "twice", "shared", "leaks", "prompts"):
        rows.add_column(name, justify="right", no_wrap=True)
    for department, group in groupby(inspection.clients, lambda client: client.client_id.split("/")[0]):
        clients = list(group)
        rows.add_row(department, *_cells(clients), style="bold")
        for client in clients:
            rows.add_row("  " + client.client_id.split("/")[1], *_cells([client]))
    return rows


def _cells(clients: Sequence[ClientSummary]) -> list[str]:
    known = [(c.train + c.eval, c.lengths) for c in clients if c.lengths is not None]
    total = sum(count for count, _ in known)
    mean = f"{sum(count * lengths.mean for count, lengths in known) / total:.0f}" if total else "–"
    longest = f"{max(lengths.longest for _, lengths in known):,}" if known else "–"
    fields = ("train", "eval", "duplicates", "elsewhere", "leaks", "prompt_leaks")
    counts = [f"{sum(getattr(client, name) for client in clients):,}" for name in fields]
    return [*counts[:2], mean, longest, *counts[2:]]


def _locations(locations: list[str]) -> str:
    more = f" and {len(locations) - 3} more" if len(locations) > 3 else ""
    return " = ".join(locations[:3]) + more
