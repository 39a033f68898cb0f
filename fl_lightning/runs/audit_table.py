"""Prints the result of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

MAX_LINES = 60
"""Lines of a table on the terminal; ``audit.json`` has all."""


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the bounds on ε and the membership tests."""
    console = console or Console()
    if result["canaries"] is None:
        console.print(
            "No canaries, so no bound on ε; a run of fit --audit.canaries 32 has some. Below is what losses tell."
        )
    else:
        title = f"ε of one record, δ = {result['delta']:g}; each bound alone holds at {result['confidence']:.0%}"
        head = ["adapter", "right", "ε at least", "provable", "ε at most"]
        console.print(_table(title, head, result["canaries"]["bounds"], _bound))
        console.print(
            "provable: the bound if all guesses were right: with 100 at most 3.49, with 1,000 at most 5.81, at δ = 0; "
            "a low bound is no proof of privacy."
        )
    if clients := result["accountant"].get("client"):
        spent = ", ".join(f"{name} {value:.3g}" for name, value in clients.items())
        console.print(f"The accountant's ε of a whole client: {spent}.")
    if mechanism := result["mechanism"]:
        console.print(
            f"{mechanism['canaries']} canary clients in random directions, sent through clipping and noise of "
            f"{mechanism['rounds']} rounds: ε of a whole client at least {mechanism['epsilon']:.2f} (provable "
            f"{mechanism['provable']:.2f}), estimated {mechanism['estimate']:.2f} ({mechanism['estimate_low']:.2f}–"
            f"{mechanism['estimate_high']:.2f}), accountant {mechanism['upper']:.2f}."
        )
    head = ["adapter", "AUC (95 %)", "TPR at 1 % (95 %)", "records"]
    for score in dict.fromkeys(line["score"] for line in result["membership"]):
        lines = [line for line in result["membership"] if line["score"] == score]
        compared = "the base model" if score == "base" else "the reference adapter"
        title = f"trained records told from held-out ones by loss against {compared}"
        console.print(_table(title, head, lines, _test))


def _bound(line: Mapping[str, Any]) -> list[str]:
    upper = "–" if line["upper"] is None else f"{line['upper']:.2f}"
    right = f"{line['correct']:,} of {line['guesses']:,}"
    return [right, f"{line['epsilon']:.2f}", f"{line['provable']:.2f}", upper]


def _test(line: Mapping[str, Any]) -> list[str]:
    auc, tpr = (f"{line[name]:.3f} ({line[f'{name}_low']:.2f}–{line[f'{name}_high']:.2f})" for name in ("auc", "tpr"))
    return [auc, tpr, f"{line['members']:,} / {line['others']:,}"]


def _table(
    title: str,
    head: Sequence[str],
    lines: Sequence[Mapping[str, Any]],
    cells: Callable[[Mapping[str, Any]], list[str]],
) -> Table:
    caption = f"the first {MAX_LINES} of {len(lines)} lines" if len(lines) > MAX_LINES else None
    table = Table(title=title, caption=caption, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    kind = None
    for line in lines[:MAX_LINES]:
        if line["kind"] != kind:
            kind = line["kind"]
            table.add_row(Text(kind, style="bold"))
        table.add_row(Text(f"  {line['owner']}"), *cells(line))
    return table
