"""Prints what clients, or newcomers, have chosen: a line for each, and the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fl_lightning.storage.components import MATES, OWN, OWN_ADAPTERS
from fl_lightning.storage.personal_models import NEGLIGIBLE_WEIGHT

MIN_NAME = 24
"""Characters of a client's name that stay in one line, however long the weights are."""


def show_choices(result: Mapping[str, Any], who: str, losses: Sequence[str], console: Console) -> None:
    """Print the table.

    Args:
        result: ``clients`` with the values of each, and their ``mean``.
        who: head of the first column: client or newcomer.
        losses: keys of the held-out losses to show.
        console: to print to.
    """
    table = Table(title=f"held-out loss of what each {who} can take", title_justify="left", box=box.SIMPLE)
    table.add_column(who, overflow="fold", min_width=min(MIN_NAME, max(map(len, result["clients"]), default=0)))
    for column in losses:
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("chosen", "weights"):
        table.add_column(column, overflow="fold")
    for client_id, values in result["clients"].items():
        single = {OWN: values.get(OWN_ADAPTERS, {}), MATES: values.get(MATES, {})}
        weights = _percentages(values["weights"], single)
        table.add_row(client_id, *_cells(values, losses), values["chosen"], weights)
    table.add_row("mean", *_cells(result["mean"], losses), "", "")
    console.print(table)


def _percentages(weights: Mapping[str, float], single: Mapping[str, Mapping[str, float]]) -> str:
    """The weights that count, largest first, with those of a level's single adapters in brackets.

    Example:
        >>> _percentages({"own": 0.2, "mates": 0.8}, {"mates": {"hr/b": 0.6, "hr/c": 0.2}})
        'mates 80% (hr/b 60%, hr/c 20%), own 20%'
    """
    texts = []
    for name, weight in sorted(weights.items(), key=lambda item: -item[1]):
        if weight >= NEGLIGIBLE_WEIGHT:
            of_single = _percentages(single.get(name, {}), {})
            texts.append(f"{name} {weight:.0%}" + (f" ({of_single})" if of_single else ""))
    return ", ".join(texts)


def _cells(values: Mapping[str, Any], losses: Sequence[str]) -> list[str]:
    cells = []
    for column in losses:
        loss = values[column]
        cells.append("–" if loss is None or not math.isfinite(loss) else f"{loss:.3f}")
    return cells
