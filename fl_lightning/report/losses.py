"""Held-out loss of every department's and every client's adapter over the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_lightning.report.drawing import Theme, line_style, set_round_axis
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, format_number, shorten
from fl_lightning.runs.artifacts import Curve, RunArtifacts
from fl_lightning.storage.files import natural_key

MAX_PANELS = 24
MAX_NAMED_CLIENTS = 4
"""A panel with more clients draws them all in the same style; the table has their names."""

MAX_LISTED_CLIENTS = 256
"""Of a department with more clients, quantiles over those that were asked are shown."""


def losses(run: RunArtifacts) -> Section:
    """Loss over rounds: a panel for each department, and the mean."""
    section = Section("losses", "Loss over rounds")
    if not run.losses and not run.client_losses:
        section.missing.append("No losses: neither metrics.csv nor the evaluation files have any.")
        return section
    section.text.append(
        "Loss on held-out records, in nats per token; lower is better. A department's adapter is evaluated on the "
        "records of all its clients; a client's own adapter, directly after its fit, on that client's records. Round 0 "
        "is the base model."
    )
    names = [*run.departments, *sorted(run.groups & run.losses.keys(), key=natural_key)]
    if len(run.mean_loss) > 1:
        section.pictures.append(_mean(run))
        if run.virtual_hours:
            section.pictures.append(_over_hours(run))
    section.pictures.append(_panels(run, names[:MAX_PANELS]))
    if len(names) > MAX_PANELS:
        section.missing.append(f"{MAX_PANELS} of {len(names)} departments are drawn; the table has all.")
    return section


def shown_clients(run: RunArtifacts, department: str) -> dict[str, Curve]:
    """{client: losses by round}; of very many clients {quantile: losses by round}."""
    clients = run.client_losses.get(department, {})
    if len(clients) <= MAX_LISTED_CLIENTS:
        return clients
    by_round: dict[int, list[float]] = {}
    for curve in clients.values():
        for round_num, loss in curve.items():
            by_round.setdefault(round_num, []).append(loss)
    levels = {"p10 of clients": 0.1, "p50 of clients": 0.5, "p90 of clients": 0.9}
    return {
        name: {r: float(np.quantile(losses, level)) for r, losses in sorted(by_round.items())}
        for name, level in levels.items()
    }


def _mean(run: RunArtifacts) -> Picture:
    curve = run.mean_loss
    first, last = min(curve), max(curve)

    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        for name in run.departments:
            losses = run.losses.get(name, {})
            axes.plot(list(losses), list(losses.values()), color=theme.muted, linewidth=0.8)
        style = {**line_style(theme, 0), "linewidth": 2, "markevery": marker_step(curve)}
        axes.plot(list(curve), list(curve.values()), label="mean over departments", **style)
        axes.plot([], [], color=theme.muted, linewidth=0.8, label="a department")
        axes.set_ylabel("held-out loss")
        axes.grid(axis="y")
        set_round_axis(axes)
        canvas.legend(loc="outside upper left", ncols=2)

    rounds = sorted(curve)
    table = Table(
        "Mean held-out loss over departments", ["round", "loss"], [[str(r), format_number(curve[r], 4)] for r in rounds]
    )
    alt = (
        f"Line of the mean held-out loss over {len(run.departments)} departments: {curve[first]:.3f} at round {first}, "
        f"{curve[last]:.3f} at round {last}."
    )
    return Picture("mean_loss", alt, "Mean over departments", draw, (WIDTH, 2.9), table)


def _over_hours(run: RunArtifacts) -> Picture:
    hours = {0: 0.0, **run.virtual_hours}
    rounds = sorted(hours.keys() & run.mean_loss.keys())

    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        for name in run.departments:
            losses = {r: loss for r, loss in run.losses.get(name, {}).items() if r in hours}
            axes.plot([hours[r] for r in losses], list(losses.values()), color=theme.muted, linewidth=0.8)
        style = {**line_style(theme, 0), "linewidth": 2, "markevery": marker_step(run.mean_loss)}
        axes.plot([hours[r] for r in rounds], [run.mean_loss[r] for r in rounds], label="mean", **style)
        axes.set(xlabel="virtual hours", ylabel="held-out loss")
        axes.grid(axis="y")

    rows = [[str(r), format_number(hours[r], 4), format_number(run.mean_loss[r], 4)] for r in rounds]
    table = Table("Mean held-out loss over virtual hours", ["round", "virtual hours", "loss"], rows)
    first, last = rounds[0], rounds[-1]
    alt = (
        f"Line of the mean held-out loss over virtual hours: {run.mean_loss[first]:.3f} at {hours[first]:.2f} hours, "
        f"{run.mean_loss[last]:.3f} at {hours[last]:.2f} hours."
    )
    return Picture("virtual_hours", alt, "Over virtual hours", draw, (WIDTH, 2.9), table)


def _panels(run: RunArtifacts, names: Sequence[str]) -> Picture:
    def draw(canvas: Any, theme: Theme) -> None:
        grid = canvas.subplots(_num_rows(names), 2 if len(names) > 1 else 1, squeeze=False, sharex=True)
        for number, axes in enumerate(grid.flat):
            if number >= len(names):
                axes.set_axis_off()
                continue
            _panel(axes, theme, run.losses.get(names[number], {}), shown_clients(run, names[number]))
            axes.set_title(shorten(names[number], 20), loc="left", fontweight="bold")
            if number + 2 >= len(names):
                set_round_axis(axes)
                axes.tick_params(labelbottom=True)
        _legend(canvas, theme, run, names)
        canvas.supylabel("held-out loss", fontsize=10)

    height = 1.0 + 1.75 * _num_rows(names)
    alt = f"A panel for each of {len(names)} departments and groups: its loss over rounds, and its clients' losses. "
    return Picture("losses", alt + _ends(run, names), "By department", draw, (WIDTH, height), table(run))


def marker_step(curve: Curve) -> int:
    """Draw a marker at every n-th point, so that a curve has at most about ten.

    Example:
        >>> marker_step({0: 1.0, 1: 2.0}), marker_step(dict.fromkeys(range(31), 1.0))
        (1, 3)
    """
    return max(1, len(curve) // 10)


def _num_rows(names: Sequence[str]) -> int:
    return max(1, math.ceil(len(names) / 2))


def _panel(axes: Any, theme: Theme, losses: Curve, clients: dict[str, Curve]) -> None:
    same_style = len(clients) > MAX_NAMED_CLIENTS
    for number, client in enumerate(sorted(clients, key=natural_key)):
        curve = clients[client]
        style = line_style(theme, number + 1)
        if same_style:
            style = {"color": theme.muted, "marker": ".", "linestyle": "-"}
        axes.plot(
            list(curve), list(curve.values()), linewidth=0.9, markersize=3.5, markevery=marker_step(curve), **style
        )
    style = {**line_style(theme, 0), "linewidth": 2, "markersize": 4.5, "markevery": marker_step(losses)}
    axes.plot(list(losses), list(losses.values()), **style)
    axes.grid(axis="y")


def _legend(canvas: Any, theme: Theme, run: RunArtifacts, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **{**line_style(theme, 0), "linewidth": 2}, label="department's adapter")]
    sizes = [len(shown_clients(run, name)) for name in names]
    if any(size > MAX_NAMED_CLIENTS for size in sizes):
        handles.append(Line2D([], [], color=theme.muted, marker=".", linewidth=0.9, label="a client's own"))
    for number, name in enumerate(_client_labels(run, names)):
        handles.append(Line2D([], [], linewidth=0.9, markersize=3.5, label=name, **line_style(theme, number + 1)))
    canvas.legend(handles=handles, loc="outside upper left", ncols=3 if len(handles) > 2 else 2)


def _client_labels(run: RunArtifacts, names: Sequence[str]) -> list[str]:
    """Labels of the first, second, … client: their names if all departments with few clients agree, else numbers."""
    clients = [sorted(shown_clients(run, name), key=natural_key) for name in names]
    few_clients = [members for members in clients if len(members) <= MAX_NAMED_CLIENTS]
    longest = max(few_clients, key=len, default=[])
    if all(members == longest[: len(members)] for members in few_clients):
        return [shorten(name, 14) for name in longest]
    return [f"client no. {number}" for number in range(1, len(longest) + 1)]


def _ends(run: RunArtifacts, names: Sequence[str]) -> str:
    ends = []
    for name in names[:8]:
        curve = run.losses.get(name, {})
        if curve:
            ends.append(f"{name} from {curve[min(curve)]:.3f} to {curve[max(curve)]:.3f}")
    return ("; ".join(ends) + ("; …" if len(names) > 8 else ".")) if ends else ""


def table(run: RunArtifacts) -> Table:
    """All losses by round: departments, each followed by its clients, then groups."""
    rounds = sorted({r for curve in run.losses.values() for r in curve} | set(run.rounds))
    rows = []
    for name in [*run.departments, *sorted(run.groups & run.losses.keys(), key=natural_key)]:
        rows.append([name, *(format_number(run.losses.get(name, {}).get(r)) for r in rounds)])
        clients = shown_clients(run, name)
        for client in sorted(clients, key=natural_key):
            rows.append([f"{name}/{client}", *(format_number(clients[client].get(r)) for r in rounds)])
    return Table("Held-out loss by round", ["adapter", *(f"round {r}" for r in rounds)], rows)
