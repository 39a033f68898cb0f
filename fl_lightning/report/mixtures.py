"""Departments' mixtures of predictions: the weights as bars, with losses, beside the clusters."""

from __future__ import annotations

from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import UNKNOWN, WIDTH, Picture, Table, format_number, shorten
from fl_lightning.runs.artifacts import RunArtifacts
from fl_lightning.storage.files import natural_key

MAX_BARS = 60
"""Departments in the picture."""


def mixture_picture(run: RunArtifacts) -> Picture:
    """The weights of every department, as bars of length 1."""
    departments, levels = sorted(run.mixtures, key=natural_key), _levels(run)
    weights = {level: [run.mixtures[name].weights.get(level, 0.0) for name in departments] for level in levels}
    rows = [[name, *(_percent(run.mixtures[name].weights.get(level)) for level in levels)] for name in departments]

    def draw(canvas: Any, theme: Theme) -> None:
        axes, names = canvas.subplots(), departments[:MAX_BARS]
        left = [0.0] * len(names)
        for number, level in enumerate(levels):
            widths = weights[level][: len(names)]
            bars = axes.barh(range(len(names)), widths, left=left, color=theme.colors[number], height=0.8, label=level)
            texts = [f"{width:.0%}" if width >= 0.1 else "" for width in widths]
            axes.bar_label(bars, texts, label_type="center", color=theme.background, fontsize=9)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(names)), [shorten(name, 24) for name in names])
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xlabel="weight")
        axes.tick_params(axis="y", length=0)
        canvas.legend(loc="outside upper center", ncols=len(levels))

    listing = "; ".join(f"{name}: {', '.join(map(' '.join, zip(levels, row, strict=True)))}" for name, *row in rows)
    table = Table("Weights in each department's mixture", ["department", *levels], rows)
    height = 1.3 + 0.32 * min(len(departments), MAX_BARS)
    alt = f"Bars of weights by level. {listing}."
    return Picture("mixtures", alt, "Mixtures of departments' predictions", draw, (WIDTH, height), table)


def loss_table(run: RunArtifacts) -> Table:
    """Held-out losses of every department's levels and of its mixture."""
    columns = [*_levels(run), "mixture"]
    rows = [
        [name, *(format_number(run.mixtures[name].losses.get(column)) for column in columns)]
        for name in sorted(run.mixtures, key=natural_key)
    ]
    return Table("Held-out loss of each department by its levels and their mixture", ["department", *columns], rows)


def _levels(run: RunArtifacts) -> list[str]:
    """The levels that some department has, in the order of the mixtures."""
    return [x for x in ("department", "cluster", "root") if any(x in m.weights for m in run.mixtures.values())]


def _percent(weight: float | None) -> str:
    return UNKNOWN if weight is None else f"{weight:.0%}"
