"""What `personalize` has chosen for each client: the weights of its mixture by level, and its losses."""

from __future__ import annotations

from statistics import fmean

from fl_lightning.report.elements import UNKNOWN, Section, Table, format_number
from fl_lightning.runs.artifacts import PERSONAL_LOSSES, PersonalResult, RunArtifacts
from fl_lightning.storage.files import natural_key


def personal(run: RunArtifacts) -> Section:
    """A row for each client: weights by level, and held-out losses."""
    section = Section("personal", "Which adapter for whom")
    clients = sorted(run.personal, key=natural_key)
    levels = list(dict.fromkeys(level for client_id in clients for level in run.personal[client_id].weights))
    section.text.append(
        "Each client's mixture of predictions, chosen by its selection records: its own adapter (all of them, "
        "if personal.own_adapters is more than 1), its department's, its cluster's, that of all clients (root), the "
        "base model, and by personal.mates all own adapters that other clients lend it. A dash is a level that the "
        "client does not have."
    )
    rows = [
        [c, *(_percent(run.personal[c].weights.get(level)) for level in levels), run.personal[c].chosen]
        for c in clients
    ]
    head = ["client", *levels, "best level"]
    section.tables.append(Table("Weights in each client's mixture", head, rows, text_columns=[len(head) - 1]))
    section.tables.append(_losses({client_id: run.personal[client_id] for client_id in clients}))
    return section


def _losses(results: dict[str, PersonalResult]) -> Table:
    rows = [[c, *(format_number(result.losses.get(kind)) for kind in PERSONAL_LOSSES)] for c, result in results.items()]
    known = {kind: [r.losses[kind] for r in results.values() if kind in r.losses] for kind in PERSONAL_LOSSES}
    rows.append(["mean", *(format_number(fmean(values) if values else None) for values in known.values())])
    head = ["client", "own adapter", "best level", "mixture", "one adapter"]
    return Table("Loss on held-out records, which have chosen nothing", head, rows)


def _percent(weight: float | None) -> str:
    return UNKNOWN if weight is None else f"{weight:.0%}"
