"""A scatter plot of all adapters on two axes."""

from __future__ import annotations

from typing import Any

from fl_lightning.report.drawing import MARKERS, Theme
from fl_lightning.report.elements import UNKNOWN, WIDTH, Picture, Section, Table, shorten
from fl_lightning.report.embedding import AdapterMap, map_adapters
from fl_lightning.runs.artifacts import ROOT, RunArtifacts
from fl_lightning.storage.files import natural_key

REPRESENTATIONS = {
    "delta": "A − A₀ of each adapter, scaled to unit length: adapters that moved in similar directions are close",
    "a": "A of each adapter",
    "product": "B A of each adapter, scaled to unit length, because A is frozen or the ranks differ",
}
MAX_NAMES = 24
"""With more departments and groups the picture has no legend; the table names them."""


def adapter_map(run: RunArtifacts) -> Section:
    """Departments, groups and clients on two axes."""
    section = Section("map", "Map of departments and clients")
    points_map = map_adapters(run.folder)
    section.missing += points_map.notes
    if not points_map.points:
        return section
    if points_map.representation == "a":
        section.missing.append(
            "A₀ is unknown without a checkpoint, so the map shows A, not the direction of its change."
        )
    shares = " and ".join(f"{share:.0%}" for share in points_map.shares)
    section.text.append(
        "The first two principal components (classical multidimensional scaling) of "
        f"{REPRESENTATIONS[points_map.representation]}. The axes explain {shares} of the variance. Clients' adapters "
        "are those after their last fit."
    )
    section.pictures.append(_picture(run, points_map))
    return section


def _picture(run: RunArtifacts, points_map: AdapterMap) -> Picture:
    names = sorted({point.department for point in points_map.points}, key=natural_key)
    newest = run.clusters[max(run.clusters)] if run.clusters else {}
    assignments = newest[ROOT].assignments if ROOT in newest else {}
    has_legend = len(names) <= MAX_NAMES

    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        axes.axhline(0, color=theme.grid, linewidth=0.8, zorder=0)
        axes.axvline(0, color=theme.grid, linewidth=0.8, zorder=0)
        for number, name in enumerate(names):
            color, marker = theme.colors[number % len(theme.colors)], MARKERS[number % len(MARKERS)]
            points = [p for p in points_map.points if p.department == name]
            clients, shared = [p for p in points if p.client], [p for p in points if not p.client]
            x, y = [p.x for p in clients], [p.y for p in clients]
            axes.scatter(x, y, s=26, marker=marker, facecolor="none", edgecolor=color)
            for point in shared:
                style = {"facecolor": (color, 0.6), "edgecolor": color}  # points below it stay visible
                axes.scatter([point.x], [point.y], s=110, marker=marker, zorder=3, **style)
        first, second = points_map.shares
        axes.set(xlabel=f"first component ({first:.0%})", ylabel=f"second component ({second:.0%})")
        axes.margins(0.16)
        if has_legend:
            canvas.legend(handles=_handles(names, theme), loc="outside upper left", ncols=2)

    rows = [
        [
            "/".join(filter(None, (p.department, p.client))),
            f"{p.x:.3f}",
            f"{p.y:.3f}",
            str(assignments.get(p.department, UNKNOWN)),
        ]
        for p in points_map.points
    ]
    table = Table("Coordinates", ["adapter", "first", "second", "cluster"], rows)
    caption = "Adapters: filled markers are departments and groups, hollow markers their clients"
    num_clients = sum(1 for p in points_map.points if p.client)
    num_shared = len(points_map.points) - num_clients
    alt = f"Scatter plot of {num_shared} departments and groups and {num_clients} clients on two components."
    return Picture("map", alt, caption, draw, (WIDTH, 3.9 + 0.11 * len(names) * has_legend), table)


def _handles(names: list[str], theme: Theme) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], linestyle="", markersize=8, label=shorten(name), marker=MARKERS[number % len(MARKERS)],
            color=theme.colors[number % len(theme.colors)],
        )
        for number, name in enumerate(names)
    ]  # fmt: skip
