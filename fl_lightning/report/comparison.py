"""Losses of base model, clients' own adapters, departments' adapters and clusters, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import UNKNOWN, WIDTH, Picture, Section, Table, format_number, shorten
from fl_lightning.runs.artifacts import RunArtifacts
from fl_lightning.storage.files import natural_key

MAX_ROWS_DRAWN = 40
KINDS = (("base", "base model", "o"), ("clients", "clients' own, mean", "s"), ("department", "department", "^"),
         ("cluster", "cluster, mean", "D"))  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Newest held-out losses of a department or group; unknown values are None.

    Attributes:
        name: of the department or group.
        base: loss of the base model.
        clients: mean loss of its clients' own adapters.
        department: loss of its adapter.
        cluster: mean loss of the departments in its cluster.
        cluster_id: its cluster.
        perplexity: of its adapter.
        accuracy: token accuracy of its adapter.
    """

    name: str
    base: float | None
    clients: float | None
    department: float | None
    cluster: float | None
    cluster_id: int | None
    perplexity: float | None
    accuracy: float | None


def comparison(run: RunArtifacts) -> Section:
    """The newest losses of every kind of adapter, department by department."""
    section = Section("comparison", "Base, clients, departments, clusters")
    losses = loss_rows(run)
    evaluated = [row for row in losses if row.base is not None or row.department is not None]
    if not evaluated:
        section.missing.append("Nothing to compare: the run has not evaluated its departments yet.")
        return section
    section.text.append(
        "Held-out loss in the newest round. “Clients' own” is the mean over the department's clients, each with its "
        "own newest adapter on its own records; “cluster” is the mean over the departments in the same cluster."
    )
    drawn = evaluated[:MAX_ROWS_DRAWN]
    section.pictures.append(_picture(drawn, _table(losses)))
    if len(losses) > len(drawn):
        section.missing.append(f"{len(drawn)} of {len(losses)} rows are drawn; the table has all.")
    return section


def loss_rows(run: RunArtifacts) -> list[Row]:
    """One row for each department, then for each group."""
    newest = run.clusters[max(run.clusters)] if run.clusters else {}
    # {name: clusters of the federation, or of the group that it belongs to}
    clusterings = {name: clustering.assignments for clustering in newest.values() for name in clustering.assignments}
    final = {name: _final_loss(run, name) for name in [*run.departments, *run.groups]}
    result = []
    for name in [*run.departments, *sorted(run.groups, key=natural_key)]:
        client_losses = [curve[max(curve)] for curve in run.client_losses.get(name, {}).values() if curve]
        assignments = clusterings.get(name, {})
        neighbors = [other for other, cluster in assignments.items() if cluster == assignments.get(name)]
        cluster_losses = [loss for neighbor in neighbors if (loss := final.get(neighbor)) is not None]
        metrics = run.metrics.get(name, {})
        result.append(
            Row(
                name,
                base=metrics.get("base", {}).get("loss", run.losses.get(name, {}).get(0)),
                clients=fmean(client_losses) if client_losses else None,
                department=final[name],
                cluster=fmean(cluster_losses) if cluster_losses else None,
                cluster_id=assignments.get(name),
                perplexity=metrics.get("final", {}).get("perplexity"),
                accuracy=metrics.get("final", {}).get("token_accuracy"),
            )
        )
    return result


def _final_loss(run: RunArtifacts, name: str) -> float | None:
    curve = {r: loss for r, loss in run.losses.get(name, {}).items() if r > 0}
    return run.metrics.get(name, {}).get("final", {}).get("loss", curve[max(curve)] if curve else None)


def _table(rows: list[Row]) -> Table:
    head = [
        "department",
        "base",
        "clients' own",
        "adapter",
        "change",
        "cluster mean",
        "cluster",
        "perplexity",
        "accuracy",
    ]
    lines = []
    for row in rows:
        difference = None if row.base is None or row.department is None else row.department - row.base
        change = UNKNOWN if difference is None else f"{difference:+.3f}"
        cluster_id = UNKNOWN if row.cluster_id is None else str(row.cluster_id)
        values = [format_number(loss) for loss in (row.base, row.clients, row.department)]
        metrics = [format_number(row.perplexity, 1), format_number(row.accuracy)]
        lines.append([row.name, *values, change, format_number(row.cluster), cluster_id, *metrics])
    return Table("Held-out loss of base, clients, departments and clusters; change is adapter − base", head, lines)


def _picture(rows: list[Row], table: Table) -> Picture:
    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        for y, row in enumerate(rows):
            values = [value for kind, _, _ in KINDS if (value := getattr(row, kind)) is not None]
            axes.plot([min(values), max(values)], [y, y], color=theme.grid, linewidth=3, zorder=1)
        for number, (kind, label, marker) in enumerate(KINDS):
            points = [(value, y) for y, row in enumerate(rows) if (value := getattr(row, kind)) is not None]
            if points:
                style = {"facecolor": "none", "edgecolor": theme.colors[number], "linewidth": 1.5}
                axes.scatter(*zip(*points, strict=True), marker=marker, s=46, label=label, zorder=2, **style)
        axes.set_yticks(range(len(rows)), [shorten(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("held-out loss")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        canvas.legend(loc="outside upper left", ncols=2)

    losses = []
    for row in rows[:6]:
        base, clients, department = (format_number(loss) for loss in (row.base, row.clients, row.department))
        losses.append(f"{row.name}: base {base}, clients' own {clients}, department {department}")
    alt = f"Losses side by side for {len(rows)} departments and groups. {'; '.join(losses)}."
    return Picture("comparison", alt, "Newest losses", draw, (WIDTH, 1.6 + 0.36 * len(rows)), table)
