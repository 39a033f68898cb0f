"""Base model, clients' own adapters, departments' adapters and clusters beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, figure, short
from fl_lightning.runs.artifacts import Run
from fl_lightning.storage.files import natural_key

MOST = 40
KINDS = (("base", "base model", "o"), ("clients", "clients' own, mean", "s"), ("department", "department", "^"),
         ("cluster", "cluster, mean", "D"))  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Losses of one department, or of a group."""

    name: str
    base: float | None
    clients: float | None
    department: float | None
    cluster: float | None
    number: int | None
    perplexity: float | None
    accuracy: float | None


def comparison(run: Run) -> Section:
    """The last figures of every kind of adapter, department by department."""
    section = Section("comparison", "Base, clients, departments, clusters")
    found = rows(run)
    if not any(row.base is not None or row.department is not None for row in found):
        section.missing.append("Nothing to compare: the run has not evaluated its departments yet.")
        return section
    section.text.append(
        "Held-out loss in the newest round there is. “Clients' own” is the mean over the department's clients of each "
        "one's newest own adapter on that client's records; “cluster” is the mean of the departments' losses in the "
        "department's cluster, so it says how its neighbours do."
    )
    drawn = [row for row in found if row.base is not None or row.department is not None][:MOST]
    section.pictures.append(_picture(drawn, _table(found)))
    if len(found) > len(drawn):
        section.missing.append(f"{len(drawn)} of {len(found)} rows are drawn; the table has all.")
    return section


def rows(run: Run) -> list[Row]:
    """One row for each department, then for each group."""
    newest = run.clusters[max(run.clusters)] if run.clusters else {}
    home = {name: own.assignments for own in newest.values() for name in own.assignments}
    final = {name: _last(run, name) for name in [*run.departments, *run.groups]}
    found = []
    for name in [*run.departments, *sorted(run.groups, key=natural_key)]:
        own = [curve[max(curve)] for curve in run.client_losses.get(name, {}).values() if curve]
        clusters = home.get(name, {})  # of the federation, or of the group that the department belongs to
        beside = [final.get(other) for other, number in clusters.items() if number == clusters.get(name)]
        known = [loss for loss in beside if loss is not None]
        figures = run.figures.get(name, {})
        found.append(
            Row(
                name,
                base=figures.get("base", {}).get("loss", run.losses.get(name, {}).get(0)),
                clients=fmean(own) if own else None,
                department=final[name],
                cluster=fmean(known) if known else None,
                number=clusters.get(name),
                perplexity=figures.get("final", {}).get("perplexity"),
                accuracy=figures.get("final", {}).get("token_accuracy"),
            )
        )
    return found


def _last(run: Run, name: str) -> float | None:
    curve = {r: loss for r, loss in run.losses.get(name, {}).items() if r > 0}
    return run.figures.get(name, {}).get("final", {}).get("loss", curve[max(curve)] if curve else None)


def _table(found: list[Row]) -> Table:
    head = ["who", "base", "clients' own", "department", "change", "cluster", "in cluster", "perplexity", "accuracy"]
    lines = []
    for row in found:
        gain = None if row.base is None or row.department is None else row.department - row.base
        own = [figure(row.base), figure(row.clients), figure(row.department)]
        number = "–" if row.number is None else str(row.number)
        change = "–" if gain is None else f"{gain:+.3f}"
        lines.append(
            [row.name, *own, change, figure(row.cluster), number, figure(row.perplexity, 1), figure(row.accuracy)]
        )
    return Table(
        "Held-out loss of base, clients, departments and clusters; change is department less base", head, lines
    )


def _picture(found: list[Row], table: Table) -> Picture:
    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        for place, row in enumerate(found):
            values = [value for kind, _, _ in KINDS if (value := getattr(row, kind)) is not None]
            axes.plot([min(values), max(values)], [place, place], color=theme.grid, linewidth=3, zorder=1)
        for number, (kind, label, marker) in enumerate(KINDS):
            points = [(getattr(row, kind), place) for place, row in enumerate(found) if getattr(row, kind) is not None]
            if points:
                style = {"facecolor": "none", "edgecolor": theme.colours[number]}
                axes.scatter(
                    *zip(*points, strict=True), marker=marker, s=46, linewidth=1.5, label=label, zorder=2, **style
                )
        axes.set_yticks(range(len(found)), [short(row.name) for row in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel("held-out loss")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        canvas.legend(loc="outside upper left", ncols=2)

    said = [
        f"{row.name}: base {figure(row.base)}, clients' own {figure(row.clients)}, department {figure(row.department)}"
        for row in found[:6]
    ]
    alt = f"Losses side by side for {len(found)} departments and groups. {'; '.join(said)}."
    return Picture("comparison", alt, "Newest losses", draw, (WIDTH, 1.6 + 0.36 * len(found)), table)
