"""How alike the departments' A-matrices are: a table with coloured cells for each round, moved through by a slider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import WIDTH, Frame, Heatmap, Picture, Section, Table, figure, short
from fl_lightning.runs.artifacts import ROOT, Found, Run
from fl_lightning.storage.files import natural_key

MOST = 40
"""Larger tables are drawn as a picture of the newest round instead."""
MOST_CELLS = 20_000
"""Of all rounds' tables together; with more than that only some rounds have one."""


def similarity(run: Run) -> Section:
    """Cosines between departments, round by round."""
    section = Section("similarity", "Similarity of the departments' A-matrices")
    found = {r: _with_cosines(own) for r, own in run.clusters.items()}
    found = {r: own for r, own in found.items() if own}
    if not found:
        section.missing.append("No similarities: there are no clusters of departments in this run.")
        return section
    newest = found[max(found)]
    named = next(iter(newest.values())).representation
    section.text.append(
        f"Cosine of what the departments' A-matrices are compared by (representation “{named or 'unknown'}”): 1 for "
        "the same direction, 0 for unrelated, -1 for opposite ones."
    )
    largest = max(len(own.members) for one in found.values() for own in one.values())
    if largest > MOST:
        section.pictures.append(_picture(max(found), newest.get(ROOT, next(iter(newest.values()))), shown=True))
        return section
    rounds = _spread(list(found), MOST_CELLS // sum(len(own.members) ** 2 for own in newest.values()))
    if len(rounds) < len(found):
        section.missing.append(f"{len(rounds)} of {len(found)} rounds are shown; cluster_metadata/ has all.")
    for r in rounds:
        section.frames.append(Frame(f"round {r}", [_heatmap(r, group, own) for group, own in found[r].items()]))
    if ROOT in newest and len(newest[ROOT].members) > 1:
        section.pictures.append(_picture(max(found), newest[ROOT], shown=False))
    return section


def _with_cosines(own: dict[str, Found]) -> dict[str, Found]:
    groups = sorted(own, key=natural_key)  # ROOT comes first
    return {group: own[group] for group in groups if own[group].cosine is not None and own[group].members}


def _spread(rounds: Sequence[int], count: int) -> list[int]:
    """At most so many of the rounds, evenly spread, the first and the last among them.

    Example:
        >>> _spread([1, 2, 3, 4, 5], 3), _spread([1, 2], 9), _spread([1, 2, 3], 0)
        ([1, 3, 5], [1, 2], [3])
    """
    if count >= len(rounds):
        return list(rounds)
    if count < 2:
        return [rounds[-1]]
    return sorted({rounds[round(i * (len(rounds) - 1) / (count - 1))] for i in range(count)})


def _heatmap(round_num: int, group: str, own: Found) -> Heatmap:
    of = f" inside {group}" if group != ROOT else ""
    cells = [[(f"{value:.2f}", *colours(value)) for value in row] for row in own.cosine or ()]
    return Heatmap(f"Cosines{of}, round {round_num}", own.members, cells)


def colours(value: float) -> tuple[str, str]:
    """(ground, ink) of a cosine: white at 0, towards blue at 1 and towards brown at -1; ink with enough contrast.

    Example:
        >>> colours(0.0), colours(1.0), colours(-1.0)
        (('#ffffff', '#000000'), ('#08519c', '#ffffff'), ('#8c4a00', '#ffffff'))
    """
    end = (8, 81, 156) if value >= 0 else (140, 74, 0)
    share = min(abs(value), 1.0)
    mixed = [round(255 + (full - 255) * share) for full in end]
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in mixed]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#" + "".join(f"{c:02x}" for c in mixed), "#000000" if luminance > 0.179 else "#ffffff"


def _picture(round_num: int, own: Found, *, shown: bool) -> Picture:
    values = own.cosine or []

    def draw(canvas: Any, theme: Theme) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        scale = LinearSegmentedColormap.from_list("cosine", ["#8c4a00", "#ffffff", "#08519c"])
        axes = canvas.subplots()
        image = axes.imshow(values, cmap=scale, vmin=-1, vmax=1)
        few = len(values) <= 12
        if few:
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colours(value)[1])
        names = [short(name, 16) for name in own.members] if len(values) <= MOST else []
        size = 9 if few else 6
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
        canvas.colorbar(image, ax=axes, shrink=0.8, label="cosine")

    rows = [[name, *(figure(v, 2) for v in row)] for name, row in zip(own.members, values, strict=True)]
    pairs = [(values[i][j], f"{own.members[i]} and {own.members[j]}") for i in range(len(values)) for j in range(i)]
    alt = f"Heatmap of cosines between {len(values)} departments in round {round_num}."
    if pairs:
        alt += (
            f" Most alike: {max(pairs)[1]} with {max(pairs)[0]:.2f}; least: {min(pairs)[1]} with {min(pairs)[0]:.2f}."
        )
    table = Table(f"Cosines, round {round_num}", ["department", *own.members], rows)
    return Picture("similarity", alt, f"Newest round, {round_num}", draw, (WIDTH, 4.2), table, shown)
