"""The parts of the page without pictures: overview, excluded updates, config."""

from __future__ import annotations

from collections import Counter

from fl_lightning.report.elements import Section, Table, format_number, format_size
from fl_lightning.runs.artifacts import ROOT, ExcludedUpdate, RunArtifacts
from fl_lightning.storage.files import natural_key
from fl_lightning.storage.run_layout import cluster_files


def overview(run: RunArtifacts) -> list[tuple[str, str]]:
    """(label, value) of the run's main numbers; unknown ones are absent."""
    done = max(run.rounds, default=0)
    entries = [("rounds", f"{done} of {run.planned_rounds}" if run.planned_rounds is not None else str(done))]
    if run.departments:
        entries.append(("departments", str(len(run.departments))))
    clients = sum(len(members) for members in run.client_losses.values())
    if clients:
        entries.append(("clients", str(clients)))
    curve = run.mean_loss
    if len(curve) > 1:
        entries.append(("mean loss", f"{format_number(curve[min(curve)])} → {format_number(curve[max(curve)])}"))
    newest = run.clusters[max(run.clusters)] if run.clusters else {}
    if ROOT in newest and newest[ROOT].n_clusters is not None:
        entries.append(("clusters", str(newest[ROOT].n_clusters)))
    if run.bytes_sent:
        entries.append(("sent", format_size(sum(sum(sizes.values()) for sizes in run.bytes_sent.values()))))
    if run.seconds:
        entries.append(("fit, seconds", format_number(sum(s.get("fit", 0.0) for s in run.seconds.values()), 0)))
    entries.append(("excluded", str(len(run.rejected))))
    return entries


def progress(run: RunArtifacts) -> str:
    """A sentence about a run that is not finished; empty for one that is."""
    done = max(run.rounds, default=0)
    if done == 0:
        return "No round of this run is finished yet; it was interrupted early, or is still running."
    if run.planned_rounds is not None and done < run.planned_rounds:
        return f"{done} of {run.planned_rounds} rounds are finished: the run was interrupted, or is still running."
    return ""


def excluded_updates(run: RunArtifacts) -> Section:
    """Clients whose updates were not averaged, or were scaled down."""
    section = Section("left-out", "Excluded updates")
    if run.rejected:
        section.text.append("Clients whose update was not averaged into their department, and the reason.")
        section.tables.append(_reasons("Excluded", run.rejected))
        counts = Counter(f"{update.department}/{update.client}" for update in run.rejected)
        clients = sorted(counts, key=lambda client: (-counts[client], natural_key(client)))
        rows = [[client, str(counts[client])] for client in clients]
        section.collapsed.append(Table("Rounds in which a client was excluded", ["client", "rounds"], rows))
    elif cluster_files(run.folder, "aggregation"):
        section.text.append("No update was excluded in any round.")
    else:
        section.missing.append("Excluded updates are unknown: there is no cluster_metadata/round_R_aggregation.json.")
    if run.scaled:
        section.text.append("Updates that the guard scaled down before averaging:")
        section.collapsed.append(_reasons("Scaled down", run.scaled))
    if run.epsilon:
        rows = [[name, format_number(run.epsilon[name])] for name in sorted(run.epsilon, key=natural_key)]
        section.tables.append(Table("Privacy spent: ε of a client of the department", ["department", "ε"], rows))
    return section


def _reasons(caption: str, updates: list[ExcludedUpdate]) -> Table:
    rows = [[str(u.round_num), u.department, u.client, u.reason] for u in updates]
    return Table(caption, ["round", "department", "client", "reason"], rows, text_columns=[1, 2, 3])


def config(run: RunArtifacts) -> Section:
    """``config.yaml`` as it is."""
    section = Section("config", "Config", code=run.config_text.strip())
    if not section.code:
        section.missing.append("There is no config.yaml.")
    return section
