"""Who is with whom: clusters of departments as a strip over the rounds, and of clients inside departments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, short
from fl_lightning.runs.artifacts import ROOT, Run
from fl_lightning.storage.files import natural_key

MOST = 60
NUMBERED = 26
"""Up to so many rounds have their cluster's number written into the strip; with more it stands once in each stretch."""


def clusters(run: Run) -> Section:
    """The assignments of every round."""
    section = Section("clusters", "Clusters over rounds")
    strips = _strips(run)
    if not strips:
        section.missing.append(
            "No clusters of departments: the run has not come so far, or federation.dept_clusters is off, or "
            "logging.save_cluster_metadata is."
        )
    else:
        section.text.append(
            "A row for each department, a column for each round; the number is its cluster. Numbers go on from round "
            "to round, so a row of one number is a department that stays with its neighbours."
        )
        section.pictures.append(_picture(run, strips))
        if len(strips) > MOST:
            section.missing.append(f"{MOST} of {len(strips)} rows are drawn; the table has all.")
    inner = _clients(run)
    if inner is not None:
        section.folded.append(inner)
    return section


def _strips(run: Run) -> dict[str, dict[int, int]]:
    """{department, or "group: member": {round: cluster}}; members of the federation first."""
    found: dict[str, dict[int, int]] = {}
    groups = sorted(
        {group for own in run.clusters.values() for group in own}, key=lambda g: (g != ROOT, natural_key(g))
    )
    for group in groups:
        whole = {r: own[group] for r, own in run.clusters.items() if group in own}
        for name in sorted({name for own in whole.values() for name in own.assignments}, key=natural_key):
            label = name if group == ROOT else f"{group}: {name}"
            found[label] = {r: own.assignments[name] for r, own in whole.items() if name in own.assignments}
    return found


def _picture(run: Run, strips: dict[str, dict[int, int]]) -> Picture:
    rounds = list(run.clusters)
    rows = [[name, *(str(own.get(r, "–")) for r in rounds)] for name, own in strips.items()]
    table = Table("Cluster of each department by round", ["who", *(f"round {r}" for r in rounds)], rows)

    def draw(canvas: Any, theme: Theme) -> None:
        from matplotlib.patches import Rectangle

        axes = canvas.subplots()
        shown = list(strips)[:MOST]
        for place, name in enumerate(shown):
            for first, last, number in segments([strips[name].get(r) for r in rounds]):
                colour, size = theme.colours[number % len(theme.colours)], (last - first + 1, 0.9)
                axes.add_patch(Rectangle((first - 0.5, place - 0.45), *size, facecolor=colour, linewidth=0))
                for column in range(first, last + 1) if len(rounds) <= NUMBERED else [(first + last) / 2]:
                    style = {"color": theme.ground, "fontsize": 9, "ha": "center", "va": "center"}
                    axes.text(column, place, str(number), clip_on=True, **style)
        step = max(1, -(-len(rounds) // 10))
        axes.set_xticks(range(0, len(rounds), step), [str(r) for r in rounds[::step]])
        axes.set_yticks(range(len(shown)), [short(name, 24) for name in shown])
        axes.set(xlim=(-0.5, len(rounds) - 0.5), ylim=(len(shown) - 0.4, -0.6), xlabel="round")
        axes.tick_params(axis="both", length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    height = 0.9 + 0.32 * min(len(strips), MOST)
    return Picture("clusters", _said(run), "Clusters of departments", draw, (WIDTH, height), table)


def segments(numbers: Sequence[int | None]) -> list[tuple[int, int, int]]:
    """(first column, last column, number) of each stretch of equal numbers; None is a gap.

    Example:
        >>> segments([0, 0, None, 1, 0])
        [(0, 1, 0), (3, 3, 1), (4, 4, 0)]
    """
    found: list[tuple[int, int, int]] = []
    for column, number in enumerate(numbers):
        if number is None:
            continue
        if found and found[-1][1:] == (column - 1, number):
            found[-1] = (found[-1][0], column, number)
        else:
            found.append((column, column, number))
    return found


def _said(run: Run) -> str:
    last = max(run.clusters)
    alt = f"Strip of clusters over {len(run.clusters)} rounds. "
    if ROOT not in run.clusters[last]:
        return alt
    by_number: dict[int, list[str]] = {}
    for name, number in run.clusters[last][ROOT].assignments.items():
        by_number.setdefault(number, []).append(name)
    said = "; ".join(f"{number}: {', '.join(names)}" for number, names in sorted(by_number.items()))
    return f"{alt}Clusters in round {last}: {said}."


def _clients(run: Run) -> Table | None:
    """Clusters of clients inside their departments; None where there are none."""
    rounds = sorted(run.client_clusters)
    names: dict[str, set[str]] = {}
    for own in run.client_clusters.values():
        for department, assignments in own.items():
            names.setdefault(department, set()).update(assignments)
    if not names:
        return None
    rows = [
        [
            f"{department}/{client}",
            *(str(run.client_clusters[r].get(department, {}).get(client, "–")) for r in rounds),
        ]
        for department in sorted(names, key=natural_key)
        for client in sorted(names[department], key=natural_key)
    ]
    return Table("Clusters of clients inside their department", ["client", *(f"round {r}" for r in rounds)], rows)
