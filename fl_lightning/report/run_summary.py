"""What is said in words: the run at a glance, who was left out and why, the config."""

from __future__ import annotations

from collections import Counter

from fl_lightning.report.elements import Section, Table, figure, kib
from fl_lightning.runs.artifacts import ROOT, LeftOut, Run
from fl_lightning.storage.files import natural_key


def glance(run: Run) -> list[tuple[str, str]]:
    """(name, value) of the run's main figures, those that are known."""
    done = max(run.rounds, default=0)
    found = [("rounds", f"{done} of {run.planned}" if run.planned is not None else str(done))]
    if run.departments:
        found.append(("departments", str(len(run.departments))))
    clients = sum(len(own) for own in run.client_losses.values())
    if clients:
        found.append(("clients", str(clients)))
    curve = run.mean_loss
    if len(curve) > 1:
        found.append(("mean loss", f"{figure(curve[min(curve)])} → {figure(curve[max(curve)])}"))
    newest = run.clusters[max(run.clusters)] if run.clusters else {}
    if ROOT in newest and newest[ROOT].n_clusters is not None:
        found.append(("clusters", str(newest[ROOT].n_clusters)))
    if run.sent:
        found.append(("travelled", kib(sum(sum(own.values()) for own in run.sent.values()))))
    if run.seconds:
        found.append(("fit, seconds", figure(sum(own.get("fit", 0.0) for own in run.seconds.values()), 0)))
    found.append(("left out", str(len(run.left_out))))
    return found


def state(run: Run) -> str:
    """Whether the run came to its end."""
    done = max(run.rounds, default=0)
    if done == 0:
        return "No round of this run is finished yet; it was interrupted early, or is still running."
    if run.planned is not None and done < run.planned:
        return f"{done} of {run.planned} rounds are finished: the run was interrupted, or is still running."
    return ""


def left_out(run: Run) -> Section:
    """Clients whose updates were not averaged, or were shortened."""
    section = Section("left-out", "Left out")
    kept = "Clients whose update was not averaged into their department, and the reason."
    if run.left_out:
        section.text.append(kept)
        section.tables.append(_reasons("Left out", run.left_out))
        counts = Counter(f"{entry.department}/{entry.client}" for entry in run.left_out)
        rows = [[who, str(counts[who])] for who in sorted(counts, key=lambda who: (-counts[who], natural_key(who)))]
        section.folded.append(Table("Rounds in which a client was left out", ["client", "rounds"], rows))
    elif any((run.folder / "cluster_metadata").glob("*_aggregation.json")):
        section.text.append("Nobody was left out of any round.")
    else:
        section.missing.append("Who was left out is not known: there is no cluster_metadata/round_R_aggregation.json.")
    if run.scaled:
        section.text.append("Updates that the guard shortened before they were averaged:")
        section.folded.append(_reasons("Shortened", run.scaled))
    if run.epsilon:
        rows = [[name, figure(run.epsilon[name])] for name in sorted(run.epsilon, key=natural_key)]
        section.tables.append(Table("Privacy spent: ε of a client of the department", ["department", "ε"], rows))
    return section


def _reasons(caption: str, entries: list[LeftOut]) -> Table:
    rows = [[str(e.round_num), e.department, e.client, e.reason] for e in entries]
    return Table(caption, ["round", "department", "client", "why"], rows, words=[1, 2, 3])


def config(run: Run) -> Section:
    """``config.yaml`` as it is."""
    section = Section("config", "Config", code=run.config.strip())
    if not section.code:
        section.missing.append("There is no config.yaml.")
    return section
