"""Cosine similarities of the departments' A-matrices: a table with colored cells for each round, and a slider."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import WIDTH, Frame, Heatmap, Picture, Section, Table, format_number, shorten
from fl_lightning.runs.artifacts import ROOT, ClusteringResult, RunArtifacts
from fl_lightning.storage.files import natural_key

MAX_MEMBERS = 40
"""With more members only a picture of the newest round is shown."""
MAX_CELLS = 20_000
"""Cells of all tables together; with more, only some rounds have a table."""
COLORS = ("#8c4a00", "#ffffff", "#08519c")
"""Of the cosines −1, 0 and 1; those between are interpolated."""


def similarity(run: RunArtifacts) -> Section:
    """Cosines between departments, round by round."""
    section = Section("similarity", "Similarity of the departments' A-matrices")
    by_round = {r: _with_cosines(clusterings) for r, clusterings in run.clusters.items()}
    by_round = {r: clusterings for r, clusterings in by_round.items() if clusterings}
    if not by_round:
        section.missing.append("No similarities: there are no clusters of departments in this run.")
        return section
    last = max(by_round)
    newest = by_round[last]
    representation = next(iter(newest.values())).representation
    section.text.append(
        f"Cosine similarity of the departments' A-matrices (representation “{representation or 'unknown'}”): 1 for the "
        "same direction, 0 for unrelated and -1 for opposite directions."
    )
    largest = max(len(clustering.members) for clusterings in by_round.values() for clustering in clusterings.values())
    if largest > MAX_MEMBERS:
        section.pictures.append(_picture(last, newest.get(ROOT, next(iter(newest.values()))), on_page=True))
        return section
    num_cells = sum(len(clustering.members) ** 2 for clustering in newest.values())
    rounds = _evenly_spaced(list(by_round), MAX_CELLS // num_cells)
    if len(rounds) < len(by_round):
        section.missing.append(f"{len(rounds)} of {len(by_round)} rounds are shown; cluster_metadata/ has all.")
    for r in rounds:
        heatmaps = [_heatmap(r, group, clustering) for group, clustering in by_round[r].items()]
        section.frames.append(Frame(f"round {r}", heatmaps))
    if ROOT in newest and len(newest[ROOT].members) > 1:
        section.pictures.append(_picture(last, newest[ROOT], on_page=False))
    return section


def _with_cosines(clusterings: dict[str, ClusteringResult]) -> dict[str, ClusteringResult]:
    """The clusterings that have similarities, in natural order, the whole federation first."""
    names = sorted(clusterings, key=natural_key)
    return {name: clusterings[name] for name in names if clusterings[name].cosine and clusterings[name].members}


def _evenly_spaced(rounds: Sequence[int], count: int) -> list[int]:
    """At most n of the rounds, evenly spaced, including the first and the last.

    Example:
        >>> _evenly_spaced([1, 2, 3, 4, 5], 3), _evenly_spaced([1, 2], 9), _evenly_spaced([1, 2, 3], 0)
        ([1, 3, 5], [1, 2], [3])
    """
    if count >= len(rounds):
        return list(rounds)
    if count < 2:
        return [rounds[-1]]
    return sorted({rounds[round(i * (len(rounds) - 1) / (count - 1))] for i in range(count)})


def _heatmap(round_num: int, group: str, clustering: ClusteringResult) -> Heatmap:
    scope = f" inside {group}" if group != ROOT else ""
    cells = [[(f"{value:.2f}", *cell_colors(value)) for value in row] for row in clustering.cosine or ()]
    return Heatmap(f"Cosines{scope}, round {round_num}", clustering.members, cells)


@functools.cache
def _color_map() -> Any:
    """From −1 to 1, with an entry for 0 exactly."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("cosine", COLORS, N=513)


def cell_colors(value: float) -> tuple[str, str]:
    """(background, text color) of a cosine; the text is black or white, whichever has more contrast.

    Example:
        >>> cell_colors(0.0), cell_colors(1.0), cell_colors(-1.0)
        (('#ffffff', '#000000'), ('#08519c', '#ffffff'), ('#8c4a00', '#ffffff'))
    """
    from matplotlib.colors import to_hex

    color = _color_map()((value + 1) / 2)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # as WCAG 2 defines it
    return to_hex(color), "#000000" if luminance > 0.179 else "#ffffff"


def _picture(round_num: int, clustering: ClusteringResult, *, on_page: bool) -> Picture:
    members, values = clustering.members, clustering.cosine or []

    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        image = axes.imshow(values, cmap=_color_map(), vmin=-1, vmax=1)
        is_small = len(values) <= 12
        if is_small:
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    style = {"ha": "center", "va": "center", "fontsize": 8, "color": cell_colors(value)[1]}
                    axes.text(j, i, f"{value:.2f}", **style)
        names = [shorten(name, 16) for name in members] if len(values) <= MAX_MEMBERS else []
        size = 9 if is_small else 6
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
        canvas.colorbar(image, ax=axes, shrink=0.8, label="cosine")

    rows = [[name, *(format_number(v, 2) for v in row)] for name, row in zip(members, values, strict=True)]
    pairs = [(values[i][j], f"{members[i]} and {members[j]}") for i in range(len(values)) for j in range(i)]
    alt = f"Heatmap of cosines between {len(values)} departments in round {round_num}."
    if pairs:
        (highest, most_similar), (lowest, least_similar) = max(pairs), min(pairs)
        alt += f" Most similar: {most_similar} with {highest:.2f}; least: {least_similar} with {lowest:.2f}."
    table = Table(f"Cosines, round {round_num}", ["department", *members], rows)
    return Picture("similarity", alt, f"Newest round, {round_num}", draw, (WIDTH, 4.2), table, on_page)
