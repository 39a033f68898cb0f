"""What ``inspect`` prints: a table of clients, then what is wrong and what a person should know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_lightning.data.inspection.checks import ClientFacts, Inspection

MOST = 10
"""So many lines of a kind are printed; ``--json`` has all of them."""
CAPTION = """mean, max: tokens of a record
twice, shared: training records that the client has more than once, that another client has too
leaks, prompts: held-out records that are trained on, those of which only the prompt is"""


def show(found: Inspection, console: Console) -> None:
    """Print a table and the findings."""
    if found.clients:
        console.print(table(found))
        console.print(CAPTION, highlight=False, soft_wrap=True)
    leaks = {
        what: [f"{leak['eval']} = {_places(leak['train'])}" for leak in found.leaks if leak["what"] == what]
        for what in ("record", "prompt")
    }
    for style, what, lines in (
        ("bold red", "errors", found.errors),
        ("yellow", "held out and trained on", leaks["record"]),
        ("yellow", "prompt held out and trained on", leaks["prompt"]),
        ("yellow", "trained on more than once", [_places(places) for places in found.duplicates]),
        ("yellow", "warnings", found.warnings),
    ):
        if not lines:
            continue
        console.print(f"\n[{style}]{what}[/] ({len(lines):,})", highlight=False)
        for line in lines[:MOST]:
            console.print(f"  {escape(line.replace(f'{found.folder}/', ''))}", highlight=False, soft_wrap=True)
        if len(lines) > MOST:
            console.print(f"  and {len(lines) - MOST:,} more, which --json lists", highlight=False)
    if not (found.errors or found.warnings):
        console.print("\nNothing is wrong.")


def table(found: Inspection) -> Table:
    """A row for each client under a row for its department."""
    rows = Table(title=found.root, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    rows.add_column("", overflow="fold")
    for name in ("train", "eval", "mean", "max", "twice", "shared", "leaks", "prompts"):
        rows.add_column(name, justify="right", no_wrap=True)
    for department, group in groupby(found.clients, lambda facts: facts.client_id.split("/")[0]):
        clients = list(group)
        rows.add_row(department, *_cells(clients), style="bold")
        for facts in clients:
            rows.add_row("  " + facts.client_id.split("/")[1], *_cells([facts]))
    return rows


def _cells(clients: Sequence[ClientFacts]) -> list[str]:
    counts = [(facts.train + facts.eval, facts.lengths) for facts in clients]
    known = [(count, lengths) for count, lengths in counts if lengths is not None]
    total = sum(count for count, _ in known)
    mean = f"{sum(count * lengths.mean for count, lengths in known) / total:.0f}" if total else "–"
    longest = f"{max(lengths.longest for _, lengths in known):,}" if known else "–"
    figures = ("duplicates", "elsewhere", "leaks", "prompt_leaks")
    sizes = [sum(getattr(facts, name) for facts in clients) for name in ("train", "eval", *figures)]
    shown = [f"{size:,}" for size in sizes]
    return [*shown[:2], mean, longest, *shown[2:]]


def _places(places: list[str]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return " = ".join(places[:3]) + more
