"""The runs in a folder, with how far they came and what they ended with; read from their files alone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.table import Table

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_json
from fl_lightning.storage.run_folder import CONFIG, RUN_PREFIX, is_locked, numbered_folders

Status = Literal["finished", "running", "interrupted", "unreadable"]
NONE = "–"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        changed: when it was last written to, UTC.
        round: the last finished one.
        rounds: those that its config asks for; None where it cannot be read.
        base: mean evaluation loss over departments before the first round.
        final: the same after the last one.
        clusters: of departments in the last round that had any.
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


def list_runs(root: Path) -> list[Run]:
    """The ``version_N`` folders under a folder, in the order of their numbers.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"--output: {root} is not a folder, wanted one with version_N folders; run 'fit' first")
    return [_read(path) for path in numbered_folders(root, RUN_PREFIX).values() if (path / CONFIG).is_file()]


def _read(folder: Path) -> Run:
    rounds = _rounds(folder / CONFIG)
    losses, clusters = _metrics(folder / "metrics.csv")
    done = max([0, *(number for number, _ in losses)])
    base = next((loss for number, loss in losses if number == 0), None)
    final = next((loss for number, loss in reversed(losses) if number > 0), None)
    departments = 0
    evaluated = _mapping(folder / "federated_eval.json")
    if evaluated:
        base, final = _loss(evaluated, "base", base), _loss(evaluated, "final", final)
        departments = len(evaluated.get("departments") or ())
    per_client = _mapping(folder / "client_eval_all_rounds.json").get("rounds")
    if isinstance(per_client, dict):
        done = max([done, *(int(key) for key in per_client if key.isdecimal())])
    status: Status = "interrupted"
    if rounds is None:
        status = "unreadable"
    elif is_locked(folder):
        status = "running"
    elif evaluated and done >= rounds:
        status = "finished"
    newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()) if path.exists())
    changed = datetime.fromtimestamp(newest, timezone.utc)
    return Run(folder.name, changed, status, done, rounds, departments, base, final, clusters)


def _rounds(path: Path) -> int | None:
    """``federation.rounds`` of a config; looked up and not parsed, for it may be of another version."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))["federation"]["rounds"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None
    return value if isinstance(value, int) else None


def _metrics(path: Path) -> tuple[list[tuple[int, float]], int | None]:
    """([(round, mean evaluation loss)], clusters of departments in the last round that had any)."""
    losses, clusters = [], None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("eval/loss"):
                    losses.append((int(row["step"]), float(row["eval/loss"])))
                if row.get("round/n_clusters"):
                    clusters = int(float(row["round/n_clusters"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        pass  # a run without CSVLogger, or one that was killed while it wrote
    return losses, clusters


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def _loss(evaluated: dict[str, Any], which: str, otherwise: float | None) -> float | None:
    try:
        return float(evaluated["mean"][which]["loss"])
    except (KeyError, TypeError, ValueError):
        return otherwise


def table(runs: Sequence[Run], title: str) -> Table:
    """A row for each run."""
    rows = Table(title=title, title_justify="left")
    rows.add_column("run", no_wrap=True)
    rows.add_column("last change", no_wrap=True)
    rows.add_column("status", overflow="fold")
    for name in ("rounds", "loss", "clusters"):
        rows.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        of = NONE if run.rounds is None else str(run.rounds)
        status: str = run.status
        if run.status in ("interrupted", "running"):
            status = f"{run.status} at round {run.round} of {of}"
        loss = NONE if run.base is None and run.final is None else f"{_number(run.base)} → {_number(run.final)}"
        when = run.changed.astimezone().strftime("%Y-%m-%d %H:%M")
        clusters = NONE if run.clusters is None else str(run.clusters)
        rows.add_row(run.name, when, status, str(run.round), loss, clusters)
    return rows


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
