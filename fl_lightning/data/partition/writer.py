"""Write a partition: as folders that `fit` reads, as a table, and as a picture."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fl_lightning.data.partition.strategies import ClientIndices
from fl_lightning.data.splits import draw_held_out
from fl_lightning.errors import InputError
from fl_lightning.storage.files import atomic_folder, write_bytes, write_json, write_text

Split = tuple[list[int], list[int]]
"""(indices to train on, indices held out)."""
MAX_LABELS = 12
"""Labels with a separate color; the rarest share one."""


def split_clients(shares: ClientIndices, fraction: float, seed: int) -> dict[str, Split]:
    """{client_id: (indices to train on, indices held out)}, each ascending and not empty.

    Example:
        >>> [len(half) for half in split_clients({"hr": {"client_0": list(range(10))}}, 0.2, seed=0)["hr/client_0"]]
        [8, 2]
    """
    splits = {}
    for department, clients in shares.items():
        for client, indices in clients.items():
            held_out = draw_held_out(len(indices), department, client, fraction, seed)
            train = [index for position, index in enumerate(indices) if position not in held_out]
            splits[f"{department}/{client}"] = train, [indices[position] for position in sorted(held_out)]
    return splits


def check_new(folder: Path) -> None:
    """Check that a folder does not exist yet.

    Raises:
        InputError: if it does, or anything else has its name.
    """
    if os.path.lexists(folder):
        raise InputError(f"--output: {folder} exists and is not overwritten; choose another, or remove it")


def write_federation(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    splits: Mapping[str, Split],
    facts: Mapping[str, Any],
    picture: bytes | None = None,
) -> None:
    """Write ``<department>/<client>/{train,eval}.jsonl``, ``partition.json`` and ``partition.png``, all or none.

    Args:
        folder: must not exist.
        records: to be written.
        splits: {client_id: (indices to train on, indices held out)}.
        facts: content of ``partition.json``.
        picture: PNG for ``partition.png``.

    Raises:
        InputError: if the folder exists or cannot be made.
    """
    check_new(folder)
    try:
        with atomic_folder(folder) as temporary:
            for client_id, halves in splits.items():
                for name, indices in zip(("train", "eval"), halves, strict=True):
                    lines = [json.dumps(records[i], ensure_ascii=False) + "\n" for i in indices]
                    write_text(temporary / client_id / f"{name}.jsonl", "".join(lines))
            write_json(temporary / "partition.json", facts)
            if picture is not None:
                write_bytes(temporary / "partition.png", picture)
    except OSError as error:
        raise InputError(f"--output: {folder} cannot be written ({error.strerror}); choose another") from error


def make_table(splits: Mapping[str, Split], counts: Mapping[str, Mapping[str, int]] | None, title: str) -> Table:
    """A table of clients with their records, and with labels the most frequent ones of each."""
    rows = Table(title=title, title_justify="left")
    for name in ("department", "client"):
        rows.add_column(name, overflow="fold")
    for name in ("train", "eval", *(("labels",) if counts else ())):
        rows.add_column(name, justify="right", no_wrap=True)
    if counts:
        rows.add_column("most frequent", overflow="fold")
    previous = None
    for client_id, (train, held_out) in splits.items():
        department, client = client_id.split("/")
        cells = [f"{len(train):,}", f"{len(held_out):,}"]
        if counts:
            labels = sorted(((n, label) for label, n in counts[client_id].items() if n), key=lambda item: -item[0])
            total = len(train) + len(held_out)
            cells += [str(len(labels)), ", ".join(f"{label} {n / total:.0%}" for n, label in labels[:3])]
        if previous not in (None, department):
            rows.add_section()
        rows.add_row("" if previous == department else department, client, *cells)
        previous = department
    sums = [f"{sum(len(halves[i]) for halves in splits.values()):,}" for i in (0, 1)]
    rows.add_section()
    rows.add_row("all", f"{len(splits)} clients", *sums, *(["", ""] if counts else []))
    return rows


def draw_counts(counts: Mapping[str, Mapping[str, int]], label: str) -> bytes:
    """PNG with two bars for each client, colored by label: the labels' shares, and the number of records.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    totals = {name: sum(client[name] for client in counts.values()) for name in next(iter(counts.values()))}
    named = sorted(totals, key=lambda name: -totals[name])
    named = named if len(named) <= MAX_LABELS else named[: MAX_LABELS - 1]
    clients, records = list(counts), [sum(client.values()) for client in counts.values()]
    series = {name: [client[name] for client in counts.values()] for name in named}
    if len(named) < len(totals):
        others = [sum(n for name, n in client.items() if name not in named) for client in counts.values()]
        series[f"{len(totals) - len(named)} others"] = others
    colors = colormaps["tab10" if len(series) <= 10 else "tab20"]
    height = max(1.4 + 0.28 * len(clients), 1.0 + 0.24 * len(series))
    figure = Figure(figsize=(11, height), layout="constrained")
    shares, numbers = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    done = [0] * len(clients)
    for number, (name, widths) in enumerate(series.items()):
        color = colors(number) if name in totals else "lightgrey"
        look = {"label": _short(name), "color": color, "edgecolor": "white", "linewidth": 0.5}
        shares.barh(clients, _ratios(widths, records), left=_ratios(done, records), **look)
        numbers.barh(clients, widths, left=done, **look)
        done = [a + b for a, b in zip(done, widths, strict=True)]
    shares.invert_yaxis()
    shares.set(xlim=(0, 1), title=f"Shares of {_short(label)}")
    shares.xaxis.set_major_formatter(PercentFormatter(1.0))
    numbers.set(title="Records")
    numbers.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    numbers.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()


def _ratios(some: Sequence[int], whole: Sequence[int]) -> list[float]:
    return [a / b for a, b in zip(some, whole, strict=True)]


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
