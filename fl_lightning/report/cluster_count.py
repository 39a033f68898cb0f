"""The number of clusters: the curve by which it was chosen, and the choice of every round."""

from __future__ import annotations

from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import UNKNOWN, WIDTH, Picture, Section, Table, format_number
from fl_lightning.runs.artifacts import ROOT, ClusteringResult, RunArtifacts


def cluster_count(run: RunArtifacts) -> Section:
    """Inertia and scores over k in the newest round, and the chosen k of every round."""
    section = Section("choice", "Number of clusters")
    by_round = {r: clusterings[ROOT] for r, clusterings in run.clusters.items() if ROOT in clusterings}
    if not by_round:
        section.missing.append("This run has no clusters of departments.")
        return section
    newest = max(by_round)
    clustering = by_round[newest]
    section.text.append(
        f"In round {newest} the rule “{clustering.select or 'unknown'}” with method “{clustering.method or 'unknown'}” "
        f"chose k = {_count(clustering)}."
    )
    curves = {"inertia": clustering.inertias, f"score by {clustering.select}": clustering.scores}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if curves:
        section.pictures.append(_picture(newest, clustering, curves))
    else:
        section.missing.append("No curve is drawn: the rule recorded no values over k.")
    rows = [[str(r), _count(clustering), clustering.select] for r, clustering in by_round.items()]
    section.collapsed.append(
        Table("Chosen number of clusters by round", ["round", "k", "rule"], rows, text_columns=[2])
    )
    return section


def _count(clustering: ClusteringResult) -> str:
    return UNKNOWN if clustering.n_clusters is None else str(clustering.n_clusters)


def _picture(newest: int, clustering: ClusteringResult, curves: dict[str, dict[int, float]]) -> Picture:
    def draw(canvas: Any, theme: Theme) -> None:
        from matplotlib.ticker import MaxNLocator

        grid = canvas.subplots(1, len(curves), squeeze=False)
        for axes, (name, curve) in zip(grid.flat, curves.items(), strict=True):
            axes.plot(list(curve), list(curve.values()), color=theme.colors[0], marker="o")
            if clustering.n_clusters in curve:
                k, value = clustering.n_clusters, curve[clustering.n_clusters]
                style = {"facecolor": "none", "edgecolor": theme.colors[1], "linewidth": 2}
                axes.scatter([k], [value], s=160, zorder=3, **style)
                axes.axvline(k, color=theme.colors[1], linestyle=":", zorder=0)
                axes.annotate(f"chosen: k = {k}", (k, value), xytext=(8, 10), textcoords="offset points", fontsize=9)
            axes.set(xlabel="number of clusters k", ylabel=name)
            axes.margins(x=0.12, y=0.2)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    ks = sorted({k for curve in curves.values() for k in curve})
    rows = [[str(k), *(format_number(curve.get(k), 4) for curve in curves.values())] for k in ks]
    for row in rows:
        row.append("chosen" if row[0] == str(clustering.n_clusters) else "")
    table = Table(f"Values over k in round {newest}", ["k", *curves, "choice"], rows, text_columns=[len(curves) + 1])
    alt = f"{' and '.join(curves)} over the number of clusters; chosen: {clustering.n_clusters}."
    return Picture("choice", alt, f"Round {newest}", draw, (WIDTH, 3.0), table)
