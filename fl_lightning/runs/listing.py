"""The runs under a folder: how far each one got, and its loss before and after; read from their files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from fl_lightning.errors import InputError
from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.storage.forgotten import read_forgotten
from fl_lightning.storage.run_folder import RUN_PREFIX, is_locked, numbered_folders
from fl_lightning.storage.run_layout import CONFIG

Status = Literal["finished", "running", "interrupted", "unreadable", "forgotten"]
UNKNOWN = "–"


@dataclass(frozen=True)
class RunEntry:
    """One run of the list.

    Attributes:
        name: of its folder.
        changed: time of the last change, UTC.
        status: ``unreadable`` if the config does not say the number of rounds; ``forgotten`` if something was taken
            out of the run, so that its adapters are used no more.
        round: the last finished one.
        rounds: asked for by the config; None if unknown.
        departments: number of departments; 0 before the first evaluation.
        base: mean held-out loss over departments before the first round.
        final: the same after the last finished round.
        clusters: number of clusters of departments in the last round that has any.
    """

    name: str
    changed: datetime
    status: Status
    round: int
    rounds: int | None
    departments: int
    base: float | None
    final: float | None
    clusters: int | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "changed": self.changed.isoformat(timespec="seconds")}


def list_runs(root: Path) -> list[RunEntry]:
    """The ``version_N`` folders under a folder, in the order of their numbers.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"--output: expected a folder with version_N folders, got {root}; run 'fit' first")
    return [_read_entry(path) for path in numbered_folders(root, RUN_PREFIX).values() if (path / CONFIG).is_file()]


def _read_entry(folder: Path) -> RunEntry:
    run = read_artifacts(folder, with_metadata=False)
    rounds, curve = run.planned_rounds, run.mean_loss
    last_round = max([0, *curve, *run.client_metrics])
    last_evaluated = max([0, *curve])
    status: Status = "interrupted"
    if read_forgotten(folder) is not None:
        status = "forgotten"
    elif rounds is None:
        status = "unreadable"
    elif is_locked(folder):
        status = "running"
    elif run.is_evaluated and last_round >= rounds:
        status = "finished"
    newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()) if path.exists())
    return RunEntry(
        folder.name,
        changed=datetime.fromtimestamp(newest, timezone.utc),
        status=status,
        round=last_round,
        rounds=rounds,
        departments=len(run.metrics.keys() - run.groups),
        base=run.mean_metrics.get("base", {}).get("loss", curve.get(0)),
        final=run.mean_metrics.get("final", {}).get("loss", curve[last_evaluated] if last_evaluated else None),
        clusters=run.n_clusters[max(run.n_clusters)] if run.n_clusters else None,
    )


def table(runs: Sequence[RunEntry], title: str) -> Table:
    """A row for each run."""
    rows = Table(title=title, title_justify="left")
    rows.add_column("run", no_wrap=True)
    rows.add_column("last change", no_wrap=True)
    rows.add_column("status", overflow="fold")
    for name in ("rounds", "loss", "clusters"):
        rows.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        total = UNKNOWN if run.rounds is None else str(run.rounds)
        status: str = run.status
        if run.status in ("interrupted", "running"):
            status = f"{run.status} at round {run.round} of {total}"
        loss = UNKNOWN if run.base is None and run.final is None else f"{_number(run.base)} → {_number(run.final)}"
        when = run.changed.astimezone().strftime("%Y-%m-%d %H:%M")
        clusters = UNKNOWN if run.clusters is None else str(run.clusters)
        rows.add_row(run.name, when, status, str(run.round), loss, clusters)
    return rows


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
