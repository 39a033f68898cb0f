"""How many clusters: the curve that the rule looked at, and what it chose."""

from __future__ import annotations

from typing import Any

from fl_lightning.report.drawing import Theme
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, figure
from fl_lightning.runs.artifacts import ROOT, Found, Run


def choice(run: Run) -> Section:
    """Inertia and scores over k in the newest round, and the chosen k of every round."""
    section = Section("choice", "How many clusters")
    found = {r: own[ROOT] for r, own in run.clusters.items() if ROOT in own}
    if not found:
        section.missing.append("Nothing was chosen: there are no clusters of departments in this run.")
        return section
    newest = max(found)
    own = found[newest]
    chosen = "–" if own.n_clusters is None else str(own.n_clusters)
    section.text.append(
        f"In round {newest} the rule “{own.select or 'unknown'}” with method “{own.method or 'unknown'}” chose "
        f"k = {chosen}."
    )
    curves = {"inertia": own.inertias, f"score by {own.select}": own.scores}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if curves:
        section.pictures.append(_picture(newest, own, curves))
    else:
        section.missing.append("The rule noted no curve over k, so there is none to draw.")
    rows = [[str(r), "–" if own.n_clusters is None else str(own.n_clusters), own.select] for r, own in found.items()]
    section.folded.append(Table("Chosen number of clusters by round", ["round", "k", "rule"], rows, words=[2]))
    return section


def _picture(newest: int, own: Found, curves: dict[str, dict[int, float]]) -> Picture:
    def draw(canvas: Any, theme: Theme) -> None:
        from matplotlib.ticker import MaxNLocator

        grid = canvas.subplots(1, len(curves), squeeze=False)
        for axes, (name, curve) in zip(grid.flat, curves.items(), strict=True):
            axes.plot(list(curve), list(curve.values()), color=theme.colours[0], marker="o")
            if own.n_clusters in curve:
                at = own.n_clusters, curve[own.n_clusters]
                axes.scatter(
                    [at[0]], [at[1]], s=160, facecolor="none", edgecolor=theme.colours[1], linewidth=2, zorder=3
                )
                axes.axvline(at[0], color=theme.colours[1], linestyle=":", zorder=0)
                axes.annotate(f"chosen: k = {at[0]}", at, xytext=(8, 10), textcoords="offset points", fontsize=9)
            axes.set(xlabel="number of clusters k", ylabel=name)
            axes.margins(x=0.12, y=0.2)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    ks = sorted({k for curve in curves.values() for k in curve})
    rows = [[str(k), *(figure(curve.get(k), 4) for curve in curves.values())] for k in ks]
    for row in rows:
        row.append("chosen" if row[0] == str(own.n_clusters) else "")
    table = Table(f"What round {newest} chose by", ["k", *curves, "choice"], rows, words=[len(curves) + 1])
    alt = f"{' and '.join(curves)} over the number of clusters; chosen: {own.n_clusters}."
    return Picture("choice", alt, f"Round {newest}", draw, (WIDTH, 3.0), table)
