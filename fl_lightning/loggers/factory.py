"""Lightning loggers by class path, writing into the run folder."""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger

from fl_lightning.errors import InputError
from fl_lightning.storage.run_layout import METRICS, MLFLOW, TENSORBOARD

ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a run folder holds its own; a server is one tracking_uri away
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Of loggers that would otherwise report home or talk over the bars; what the user has set stays."""


def make_loggers(specs: Sequence[dict[str, Any]], run_folder: Path, *, fresh: bool = True) -> list[Logger]:
    """Instantiate loggers; those that take ``save_dir`` write into the run folder unless told otherwise.

    Args:
        specs: mappings with ``class_path`` and, where wanted, ``init_args``.
        run_folder: the run's folder.
        fresh: whether the run is new. The rows of a resumed one are all written again, so what TensorBoard's and CSV
            loggers wrote into its folder goes first.

    Raises:
        InputError: naming the logger that cannot be made.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    places = [f"logging.loggers[{index}]: {spec['class_path']}" for index, spec in enumerate(specs)]
    classes = [_import(where, spec["class_path"]) for where, spec in zip(places, specs, strict=True)]
    loggers: list[Logger] = []
    for where, spec, cls in zip(places, specs, classes, strict=True):
        arguments = dict(spec.get("init_args", {}))
        parameters = inspect.signature(cls).parameters
        if "save_dir" in parameters and "save_dir" not in arguments:
            arguments["save_dir"] = str(run_folder)
            arguments.update({k: "" for k in ("name", "version") if _writes_plain_files(cls) and k not in arguments})
            if cls.__name__ == "MLFlowLogger":
                arguments["save_dir"] = str(run_folder / MLFLOW)
        if not fresh and _writes_plain_files(cls) and arguments.get("save_dir") == str(run_folder):
            for old in (run_folder / METRICS, *run_folder.glob(TENSORBOARD)):
                old.unlink(missing_ok=True)
        if cls.__name__ == "TensorBoardLogger":  # the config goes beside what came out, and not beside a -1 before it
            arguments.update({"default_hp_metric": False} if "default_hp_metric" in parameters else {})
        if not fresh and cls.__name__ == "TensorBoardLogger":
            arguments.setdefault("purge_step", 0)  # elsewhere the old rows stay and are passed over
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
                loggers.append(cls(**arguments))
                getattr(loggers[-1], "experiment", None)  # opens its files now, so that a bad folder shows now
        except Exception as error:  # a logger's service raises whatever its authors chose
            raise InputError(f"{where}: {' '.join(str(error).split())[:300]}") from error
    return loggers


def _import(where: str, path: str) -> type[Logger]:
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot be imported ({error}); wanted the path of a Lightning logger") from error
    if not (isinstance(cls, type) and issubclass(cls, Logger)):
        raise InputError(f"{where}: is not a Lightning logger; wanted the path of one")
    return cls


def _writes_plain_files(cls: type) -> bool:
    """CSV and TensorBoard put their files straight into the run folder; others sort runs by name and version."""
    return any(base.__name__ in ("CSVLogger", "TensorBoardLogger") for base in cls.__mro__)
