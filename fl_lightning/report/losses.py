"""Held-out loss of every department's and every client's adapter over the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fl_lightning.report.drawing import Theme, look, whole_rounds
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, figure, short
from fl_lightning.runs.artifacts import Curve, Run
from fl_lightning.storage.files import natural_key

MAX_PANELS = 24
NAMED_CLIENTS = 4
"""A panel with more clients than these draws them alike, and leaves their names to the table."""


def losses(run: Run) -> Section:
    """Loss over rounds: a panel for each department, and the mean."""
    section = Section("losses", "Loss over rounds")
    if not run.losses and not run.client_losses:
        section.missing.append("No losses: neither metrics.csv nor the evaluation files have any.")
        return section
    section.text.append(
        "Loss on held-out records, in nats a token; lower is better. A department's adapter is judged on the records "
        "of all its clients, a client's own adapter, just after its fit, on that client's. Round 0 is the base model."
    )
    who = [*run.departments, *sorted(run.groups & run.losses.keys(), key=natural_key)]
    if len(run.mean_loss) > 1:
        section.pictures.append(_mean(run, who))
    section.pictures.append(_panels(run, who[:MAX_PANELS]))
    if len(who) > MAX_PANELS:
        section.missing.append(f"{MAX_PANELS} of {len(who)} departments are drawn; the table has all.")
    return section


def _mean(run: Run, who: Sequence[str]) -> Picture:
    curve = run.mean_loss
    first, last = min(curve), max(curve)

    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        for name in run.departments:
            own = run.losses.get(name, {})
            axes.plot(list(own), list(own.values()), color=theme.faint, linewidth=0.8)
        style = {**look(theme, 0), "linewidth": 2, "markevery": few(curve)}
        axes.plot(list(curve), list(curve.values()), label="mean over departments", **style)
        axes.plot([], [], color=theme.faint, linewidth=0.8, label="a department")
        axes.set_ylabel("held-out loss")
        axes.grid(axis="y")
        whole_rounds(axes)
        canvas.legend(loc="outside upper left", ncols=2)

    rounds = sorted(curve)
    table = Table(
        "Mean held-out loss over departments", ["round", "loss"], [[str(r), figure(curve[r], 4)] for r in rounds]
    )
    alt = (
        f"Line of the mean held-out loss over {len(run.departments)} departments: {curve[first]:.3f} at round {first}, "
        f"{curve[last]:.3f} at round {last}."
    )
    return Picture("mean_loss", alt, "Mean over departments", draw, (WIDTH, 2.9), table)


def _panels(run: Run, who: Sequence[str]) -> Picture:
    def draw(canvas: Any, theme: Theme) -> None:
        grid = canvas.subplots(_rows(who), 2 if len(who) > 1 else 1, squeeze=False, sharex=True)
        for number, axes in enumerate(grid.flat):
            if number >= len(who):
                axes.set_axis_off()
                continue
            _panel(axes, theme, run.losses.get(who[number], {}), run.client_losses.get(who[number], {}))
            axes.set_title(short(who[number], 20), loc="left", fontweight="bold")
            if number + 2 >= len(who):
                whole_rounds(axes)
                axes.tick_params(labelbottom=True)
        _legend(canvas, theme, run, who)
        canvas.supylabel("held-out loss", fontsize=10)

    height = 1.0 + 1.75 * _rows(who)
    alt = f"A panel for each of {len(who)} departments and groups: its loss over rounds, and its clients' own losses. "
    return Picture("losses", alt + _ends(run, who), "By department", draw, (WIDTH, height), table(run))


def few(curve: Curve) -> int:
    """Of so many points one has a marker, so that about ten are to be seen.

    Example:
        >>> few({0: 1.0, 1: 2.0}), few(dict.fromkeys(range(31), 1.0))
        (1, 3)
    """
    return max(1, len(curve) // 10)


def _rows(who: Sequence[str]) -> int:
    return max(1, math.ceil(len(who) / 2))


def _panel(axes: Any, theme: Theme, own: Curve, clients: dict[str, Curve]) -> None:
    many = len(clients) > NAMED_CLIENTS
    for number, client in enumerate(sorted(clients, key=natural_key)):
        curve = clients[client]
        style = {"color": theme.faint, "marker": ".", "linestyle": "-"} if many else look(theme, number + 1)
        axes.plot(list(curve), list(curve.values()), linewidth=0.9, markersize=3.5, markevery=few(curve), **style)
    style = {**look(theme, 0), "linewidth": 2, "markersize": 4.5, "markevery": few(own)}
    axes.plot(list(own), list(own.values()), **style)
    axes.grid(axis="y")


def _legend(canvas: Any, theme: Theme, run: Run, who: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **{**look(theme, 0), "linewidth": 2}, label="department's adapter")]
    sizes = [len(run.client_losses.get(name, {})) for name in who]
    if any(size > NAMED_CLIENTS for size in sizes):
        handles.append(Line2D([], [], color=theme.faint, marker=".", linewidth=0.9, label="a client's own"))
    for number, name in enumerate(_clients_names(run, who)):
        handles.append(Line2D([], [], linewidth=0.9, markersize=3.5, label=name, **look(theme, number + 1)))
    canvas.legend(handles=handles, loc="outside upper left", ncols=3 if len(handles) > 2 else 2)


def _clients_names(run: Run, who: Sequence[str]) -> list[str]:
    """What the n-th clients are called where every department with few of them agrees on it; else their numbers."""
    few_clients = [sorted(run.client_losses.get(name, {}), key=natural_key) for name in who]
    few_clients = [names for names in few_clients if len(names) <= NAMED_CLIENTS]
    longest = max(few_clients, key=len, default=[])
    if all(names == longest[: len(names)] for names in few_clients):
        return [short(name, 14) for name in longest]
    return [f"client no. {number}" for number in range(1, len(longest) + 1)]


def _ends(run: Run, who: Sequence[str]) -> str:
    ends = []
    for name in who[:8]:
        own = run.losses.get(name, {})
        if own:
            ends.append(f"{name} from {own[min(own)]:.3f} to {own[max(own)]:.3f}")
    return ("; ".join(ends) + ("; …" if len(who) > 8 else ".")) if ends else ""


def table(run: Run) -> Table:
    """Everybody's loss by round: departments, their clients under them, groups at the end."""
    rounds = sorted({r for own in run.losses.values() for r in own} | set(run.rounds))
    rows = []
    for name in [*run.departments, *sorted(run.groups & run.losses.keys(), key=natural_key)]:
        rows.append([name, *(figure(run.losses.get(name, {}).get(r)) for r in rounds)])
        clients = run.client_losses.get(name, {})
        for client in sorted(clients, key=natural_key):
            rows.append([f"{name}/{client}", *(figure(clients[client].get(r)) for r in rounds)])
    return Table("Held-out loss by round", ["who", *(f"round {r}" for r in rounds)], rows)
