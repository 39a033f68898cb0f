"""``FORGOTTEN.json`` marks a run from which something was taken out: its adapters are used no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_layout import FORGOTTEN


def mark_forgotten(run_folder: Path, values: Mapping[str, Any]) -> None:
    """Mark a run.

    Args:
        run_folder: of the run.
        values: ``new_run``: the run without what was taken out, relative to the run's parent; ``taken_out``, as in the
            certificate; ``first_round``; ``purged``: whether the run's files were deleted.
    """
    write_json(run_folder / FORGOTTEN, values)


def read_forgotten(run_folder: Path) -> dict[str, Any] | None:
    """The mark of a run; None if it has none. A mark that cannot be read is one too, and empty."""
    path = run_folder / FORGOTTEN
    if not path.exists() and not path.is_symlink():
        return None
    try:
        values = read_json(path)
    except InputError:
        return {}
    return dict(values) if isinstance(values, dict) else {}


def check_not_forgotten(run_folder: Path) -> None:
    """Check that a run's adapters may be used.

    Raises:
        InputError: if the run is marked, with the run that replaces it.
    """
    values = read_forgotten(run_folder)
    if values is None:
        return
    new_run = values.get("new_run")
    instead = f"use {run_folder.parent / new_run}" if isinstance(new_run, str) else "use the run that forget has made"
    raise InputError(
        f"{run_folder}: expected a run that may be used, got one from which something was taken out ({FORGOTTEN}); "
        f"{instead}"
    )
