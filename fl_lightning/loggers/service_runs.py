"""Runs of tracking services (MLflow, Weights & Biases) that a resumed run continues, by ids kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_text, write_text
from fl_lightning.storage.run_layout import LOGGERS

ID_ARGUMENTS = {"MLFlowLogger": "run_id", "WandbLogger": "id"}
"""{class name: its argument for the id of a run}."""


def save_service_runs(specs: Sequence[dict[str, Any]], loggers: Sequence[Logger], run_folder: Path) -> None:
    """Write the ids of the services' runs, if there are any.

    Args:
        specs: of the loggers.
        loggers: made from them, in this order.
        run_folder: of the run.
    """
    ids = [
        {"class_path": spec["class_path"], "id": str(logger.version)}
        for spec, logger in zip(specs, loggers, strict=True)
        if type(logger).__name__ in ID_ARGUMENTS
    ]
    if ids:
        write_text(run_folder / LOGGERS, json.dumps(ids, indent=2) + "\n")


def read_service_runs(specs: Sequence[dict[str, Any]], run_folder: Path) -> list[dict[str, str]]:
    """Arguments that let loggers continue their services' runs.

    Args:
        specs: of the loggers.
        run_folder: of the run that is resumed.

    Returns:
        For each logger the argument with the id; an empty mapping for a logger that starts anew.

    Raises:
        InputError: if the file with the ids is damaged.
    """
    path = run_folder / LOGGERS
    saved: list[dict[str, str]] = []
    if path.exists():
        try:
            saved = [
                {key: str(entry[key]) for key in ("class_path", "id")}
                for entry in json.loads(read_text(path, "ids of loggers"))
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: expected a list of {{class_path, id}}; remove it to log to new runs") from error
    arguments: list[dict[str, str]] = []
    for spec in specs:
        name = spec["class_path"].rpartition(".")[2]
        entry = next((entry for entry in saved if entry["class_path"] == spec["class_path"]), None)
        arguments.append({} if entry is None or name not in ID_ARGUMENTS else {ID_ARGUMENTS[name]: entry["id"]})
        saved = [other for other in saved if other is not entry]
    return arguments
