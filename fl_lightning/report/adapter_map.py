"""The map of departments and clients, drawn."""

from __future__ import annotations

from typing import Any

from fl_lightning.report.drawing import MARKERS, Theme
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, short
from fl_lightning.report.embedding import Places, map_adapters
from fl_lightning.runs.artifacts import ROOT, Run
from fl_lightning.storage.files import natural_key

WHAT = {
    "delta": "A − A₀ of each adapter, scaled to length one, so that near points moved in like directions",
    "a": "A of each adapter",
    "product": "B A of each adapter, scaled to length one, since A alone is frozen here or of several ranks",
}
NAMED = 24
"""Up to so many departments and groups are named in the picture; more are in its table."""


def landscape(run: Run) -> Section:
    """Departments and clients on two axes."""
    section = Section("map", "Map of departments and clients")
    found = map_adapters(run.folder)
    section.missing += found.notes
    if not found.places:
        return section
    if found.of == "a":
        section.missing.append("A₀ is not known without a checkpoint, so the map shows A and not its direction.")
    shares = " and ".join(f"{share:.0%}" for share in found.shares)
    section.text.append(
        f"The first two principal components, which is classical multidimensional scaling, of {WHAT[found.of]}. "
        f"The axes hold {shares} of the variance; what lies beyond does not show. Clients are as they were after their "
        "newest fit."
    )
    section.pictures.append(_picture(run, found))
    return section


def _picture(run: Run, found: Places) -> Picture:
    names = sorted({place.department for place in found.places}, key=natural_key)
    newest = run.clusters[max(run.clusters)] if run.clusters else {}
    cluster = newest[ROOT].assignments if ROOT in newest else {}

    named = len(names) <= NAMED

    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        axes.axhline(0, color=theme.grid, linewidth=0.8, zorder=0)
        axes.axvline(0, color=theme.grid, linewidth=0.8, zorder=0)
        for number, name in enumerate(names):
            colour, marker = theme.colours[number % len(theme.colours)], MARKERS[number % len(MARKERS)]
            clients = [p for p in found.places if p.department == name and p.client]
            axes.scatter(
                [p.x for p in clients], [p.y for p in clients], s=26, marker=marker, facecolor="none", edgecolor=colour
            )
            for own in (p for p in found.places if p.department == name and not p.client):
                style = {"facecolor": (colour, 0.6), "edgecolor": colour}  # what lies below it shows
                axes.scatter([own.x], [own.y], s=110, marker=marker, zorder=3, **style)
        axes.set(xlabel=f"first component ({found.shares[0]:.0%})", ylabel=f"second component ({found.shares[1]:.0%})")
        axes.margins(0.16)
        if named:
            canvas.legend(handles=_handles(names, theme), loc="outside upper left", ncols=2)

    rows = [
        [
            "/".join(filter(None, (p.department, p.client))),
            f"{p.x:.3f}",
            f"{p.y:.3f}",
            str(cluster.get(p.department, "–")),
        ]
        for p in found.places
    ]
    table = Table("Coordinates", ["who", "first", "second", "cluster"], rows)
    caption = "Adapters: filled a department or group, hollow its clients"
    clients = sum(1 for p in found.places if p.client)
    alt = f"Scatter of {len(found.places) - clients} departments and groups and {clients} clients on two components."
    return Picture("map", alt, caption, draw, (WIDTH, 3.9 + 0.11 * len(names) * named), table)


def _handles(names: list[str], theme: Theme) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], linestyle="", markersize=8, label=short(name), marker=MARKERS[number % len(MARKERS)],
            color=theme.colours[number % len(theme.colours)],
        )
        for number, name in enumerate(names)
    ]  # fmt: skip
