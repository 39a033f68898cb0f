"""Clusters of departments as a strip over the rounds, and clusters of clients inside departments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import UNKNOWN, WIDTH, Picture, Section, Table, shorten
from fl_lightning.report.mixtures import loss_table, mixture_picture
from fl_lightning.runs.artifacts import ROOT, RunArtifacts
from fl_lightning.storage.files import natural_key

MAX_STRIPS = 60
"""Departments in the picture."""
MAX_NUMBERED_ROUNDS = 26
"""With more rounds the cluster's number is written once per segment, not in every round."""


def clusters(run: RunArtifacts) -> Section:
    """The clusters of every round."""
    section = Section("clusters", "Clusters over rounds")
    strips = _strips(run)
    if not strips:
        section.missing.append(
            "No clusters of departments: no round is finished yet, or federation.dept_clusters or "
            "logging.save_cluster_metadata is off."
        )
    else:
        section.text.append(
            "A row for each department, a column for each round; the number is its cluster. Clusters keep their "
            "numbers over the rounds, so a department with one number in all rounds has stayed in its cluster."
        )
        section.pictures.append(_picture(run, strips))
        if len(strips) > MAX_STRIPS:
            section.missing.append(f"{MAX_STRIPS} of {len(strips)} rows are drawn; the table has all.")
    if run.mixtures:
        section.text.append(
            "Each department mixes the predictions of its own adapter, its cluster's and that of all departments "
            "(root), weighted by its clients' selection records; states are not mixed. A dash is a level that it does "
            "not have."
        )
        section.pictures.append(mixture_picture(run))
        section.tables.append(loss_table(run))
    client_table = _client_table(run)
    if client_table is not None:
        section.collapsed.append(client_table)
    return section


def _strips(run: RunArtifacts) -> dict[str, dict[int, int]]:
    """{department, or "group: member": {round: cluster}}; members of the federation first."""
    strips: dict[str, dict[int, int]] = {}
    groups = {group for clusterings in run.clusters.values() for group in clusterings}
    for group in sorted(groups, key=lambda group: (group != ROOT, natural_key(group))):
        assignments = {r: groups[group].assignments for r, groups in run.clusters.items() if group in groups}
        for name in sorted({name for members in assignments.values() for name in members}, key=natural_key):
            label = name if group == ROOT else f"{group}: {name}"
            strips[label] = {r: members[name] for r, members in assignments.items() if name in members}
    return strips


def _picture(run: RunArtifacts, strips: dict[str, dict[int, int]]) -> Picture:
    rounds = list(run.clusters)
    rows = [[name, *(str(strip.get(r, UNKNOWN)) for r in rounds)] for name, strip in strips.items()]
    table = Table("Cluster of each department by round", ["department", *(f"round {r}" for r in rounds)], rows)

    def draw(canvas: Any, theme: Theme) -> None:
        from matplotlib.patches import Rectangle

        axes = canvas.subplots()
        names = list(strips)[:MAX_STRIPS]
        for row, name in enumerate(names):
            for first, last, cluster in segments([strips[name].get(r) for r in rounds]):
                color, size = theme.colors[cluster % len(theme.colors)], (last - first + 1, 0.9)
                axes.add_patch(Rectangle((first - 0.5, row - 0.45), *size, facecolor=color, linewidth=0))
                every_round = len(rounds) <= MAX_NUMBERED_ROUNDS
                for column in range(first, last + 1) if every_round else [(first + last) / 2]:
                    style = {"color": theme.background, "fontsize": 9, "ha": "center", "va": "center"}
                    axes.text(column, row, str(cluster), clip_on=True, **style)
        step = max(1, -(-len(rounds) // 10))
        axes.set_xticks(range(0, len(rounds), step), [str(r) for r in rounds[::step]])
        axes.set_yticks(range(len(names)), [shorten(name, 24) for name in names])
        axes.set(xlim=(-0.5, len(rounds) - 0.5), ylim=(len(names) - 0.4, -0.6), xlabel="round")
        axes.tick_params(axis="both", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    height = 0.9 + 0.32 * min(len(strips), MAX_STRIPS)
    return Picture("clusters", _description(run), "Clusters of departments", draw, (WIDTH, height), table)


def segments(clusters: Sequence[int | None]) -> list[tuple[int, int, int]]:
    """(first column, last column, cluster) of each sequence of equal clusters; None is a gap.

    Example:
        >>> segments([0, 0, None, 1, 0])
        [(0, 1, 0), (3, 3, 1), (4, 4, 0)]
    """
    result: list[tuple[int, int, int]] = []
    for column, cluster in enumerate(clusters):
        if cluster is None:
            continue
        if result and result[-1][1:] == (column - 1, cluster):
            result[-1] = (result[-1][0], column, cluster)
        else:
            result.append((column, column, cluster))
    return result


def _description(run: RunArtifacts) -> str:
    last = max(run.clusters)
    alt = f"Strip of clusters over {len(run.clusters)} rounds. "
    if ROOT not in run.clusters[last]:
        return alt
    members: dict[int, list[str]] = {}
    for name, cluster in run.clusters[last][ROOT].assignments.items():
        members.setdefault(cluster, []).append(name)
    listing = "; ".join(f"{cluster}: {', '.join(names)}" for cluster, names in sorted(members.items()))
    return f"{alt}Clusters in round {last}: {listing}."


def _client_table(run: RunArtifacts) -> Table | None:
    """Clusters of clients inside their departments; None if there are none."""
    rounds = sorted(run.client_clusters)
    names: dict[str, set[str]] = {}
    for departments in run.client_clusters.values():
        for department, assignments in departments.items():
            names.setdefault(department, set()).update(assignments)
    if not names:
        return None
    rows = [
        [
            f"{department}/{client}",
            *(str(run.client_clusters[r].get(department, {}).get(client, UNKNOWN)) for r in rounds),
        ]
        for department in sorted(names, key=natural_key)
        for client in sorted(names[department], key=natural_key)
    ]
    return Table("Clusters of clients inside their department", ["client", *(f"round {r}" for r in rounds)], rows)
