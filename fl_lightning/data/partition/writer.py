"""A dealt federation on disk, in a table and in a picture."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fl_lightning.data.partition.strategies import Shares
from fl_lightning.errors import InputError
from fl_lightning.seeding import derive_seed
from fl_lightning.storage.files import atomic_folder, write_bytes, write_json, write_text

MOST_LABELS = 12
"""Labels with a colour of their own; the rarest share one."""


def hold_out(indices: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(indices to train on, indices held out), each ascending and none empty.

    Example:
        >>> [len(part) for part in hold_out(range(10), 0.2, 0)]
        [8, 2]
    """
    count = min(len(indices) - 1, max(1, round(len(indices) * fraction)))
    chosen = set(random.Random(seed).sample(list(indices), count))
    return [i for i in indices if i not in chosen], sorted(chosen)


def splits(shares: Shares, fraction: float, seed: int) -> dict[str, tuple[list[int], list[int]]]:
    """{client_id: (indices to train on, indices held out)}."""
    return {
        f"{department}/{client}": hold_out(indices, fraction, derive_seed(seed, "split", department, client))
        for department, clients in shares.items()
        for client, indices in clients.items()
    }


def check_new(folder: Path) -> None:
    """Check that nothing is there yet.

    Raises:
        InputError: if something is.
    """
    if os.path.lexists(folder):
        raise InputError(f"--output: {folder} is there already and is not overwritten; choose another, or remove it")


def write_federation(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    dealt: Mapping[str, tuple[list[int], list[int]]],
    facts: Mapping[str, Any],
    picture: bytes | None = None,
) -> None:
    """Write ``<department>/<client>/{train,eval}.jsonl``, ``partition.json`` and ``partition.png``, all or nothing.

    Args:
        folder: must not exist.
        records: what lands in the files.
        dealt: {client_id: (indices to train on, indices held out)}.
        facts: go into ``partition.json``.
        picture: PNG.

    Raises:
        InputError: if the folder exists or cannot be made.
    """
    check_new(folder)
    try:
        with atomic_folder(folder) as temporary:
            for client_id, halves in dealt.items():
                for name, indices in zip(("train", "eval"), halves, strict=True):
                    lines = [json.dumps(records[i], ensure_ascii=False) + "\n" for i in indices]
                    write_text(temporary / client_id / f"{name}.jsonl", "".join(lines))
            write_json(temporary / "partition.json", facts)
            if picture is not None:
                write_bytes(temporary / "partition.png", picture)
    except OSError as error:
        raise InputError(f"--output: {folder} cannot be written ({error.strerror}); choose another") from error


def table(
    dealt: Mapping[str, tuple[list[int], list[int]]], counts: Mapping[str, Mapping[str, int]] | None, title: str
) -> Table:
    """Who got what; with labels the most frequent ones of each client."""
    found = Table(title=title, title_justify="left")
    for name in ("department", "client"):
        found.add_column(name, overflow="fold")
    for name in ("train", "eval", *(("labels",) if counts else ())):
        found.add_column(name, justify="right", no_wrap=True)
    if counts:
        found.add_column("most frequent", overflow="fold")
    before = None
    for client_id, (train, held_out) in dealt.items():
        department, client = client_id.split("/")
        cells = [f"{len(train):,}", f"{len(held_out):,}"]
        if counts:
            own = sorted(((n, label) for label, n in counts[client_id].items() if n), key=lambda item: -item[0])
            total = len(train) + len(held_out)
            cells += [str(len(own)), ", ".join(f"{label} {n / total:.0%}" for n, label in own[:3])]
        if before not in (None, department):
            found.add_section()
        found.add_row("" if before == department else department, client, *cells)
        before = department
    sums = [f"{sum(len(halves[i]) for halves in dealt.values()):,}" for i in (0, 1)]
    found.add_section()
    found.add_row("all", f"{len(dealt)} clients", *sums, *(["", ""] if counts else []))
    return found


def draw(counts: Mapping[str, Mapping[str, int]], label: str) -> bytes:
    """PNG with two bars for each client, coloured by label: the labels' shares, and how many records.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    totals = {name: sum(own[name] for own in counts.values()) for name in next(iter(counts.values()))}
    named = sorted(totals, key=lambda name: -totals[name])
    named = named if len(named) <= MOST_LABELS else named[: MOST_LABELS - 1]
    clients, records = list(counts), [sum(own.values()) for own in counts.values()]
    series = {name: [own[name] for own in counts.values()] for name in named}
    if len(named) < len(totals):
        others = [sum(n for name, n in own.items() if name not in named) for own in counts.values()]
        series[f"{len(totals) - len(named)} others"] = others
    colours = colormaps["tab10" if len(series) <= 10 else "tab20"]
    height = max(1.4 + 0.28 * len(clients), 1.0 + 0.24 * len(series))
    figure = Figure(figsize=(11, height), layout="constrained")
    shares, numbers = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    done = [0] * len(clients)
    for number, (name, widths) in enumerate(series.items()):
        colour = colours(number) if name in totals else "lightgrey"
        look = {"label": _short(name), "color": colour, "edgecolor": "white", "linewidth": 0.5}
        shares.barh(clients, _parts_of(widths, records), left=_parts_of(done, records), **look)
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


def _parts_of(some: Sequence[int], whole: Sequence[int]) -> list[float]:
    return [a / b for a, b in zip(some, whole, strict=True)]


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
