"""Lightning loggers by class path, writing into the run folder."""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger

from fl_lightning.errors import InputError
from fl_lightning.loggers.service_runs import read_service_runs, save_service_runs
from fl_lightning.storage.run_layout import METRICS, MLFLOW, TENSORBOARD

ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # the run folder has a file store; tracking_uri chooses a server instead
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Against telemetry, and output over the progress bars; the user's own settings are kept."""


def make_loggers(specs: Sequence[dict[str, Any]], run_folder: Path, *, fresh: bool = True) -> list[Logger]:
    """Make loggers; those that have the argument ``save_dir`` write into the run folder by default.

    Args:
        specs: mappings with ``class_path`` and optional ``init_args``.
        run_folder: the run's folder.
        fresh: whether the run is new. A resumed run continues its runs at tracking services. To other loggers it logs
            all rows again, so the files that TensorBoard's and CSV loggers wrote into its folder are removed first.

    Raises:
        InputError: naming the logger that cannot be made, and why.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    locations = [f"logging.loggers[{index}]: {spec['class_path']}" for index, spec in enumerate(specs)]
    classes = [_import(location, spec["class_path"]) for location, spec in zip(locations, specs, strict=True)]
    continued: Sequence[Mapping[str, str]] = [{}] * len(specs) if fresh else read_service_runs(specs, run_folder)
    loggers: list[Logger] = []
    for location, spec, cls, service_run in zip(locations, specs, classes, continued, strict=True):
        arguments = {**service_run, **spec.get("init_args", {})}
        parameters = inspect.signature(cls).parameters
        if "save_dir" in parameters and "save_dir" not in arguments:
            arguments["save_dir"] = str(run_folder)
            arguments.update({k: "" for k in ("name", "version") if _writes_plain_files(cls) and k not in arguments})
            if cls.__name__ == "MLFlowLogger":
                arguments["save_dir"] = str(run_folder / MLFLOW)
        if not fresh and _writes_plain_files(cls) and arguments.get("save_dir") == str(run_folder):
            for old in (run_folder / METRICS, *run_folder.glob(TENSORBOARD)):
                old.unlink(missing_ok=True)
        if cls.__name__ == "TensorBoardLogger":  # or it would log hyperparameters with a metric of -1
            arguments.update({"default_hp_metric": False} if "default_hp_metric" in parameters else {})
        if not fresh and cls.__name__ == "TensorBoardLogger":
            arguments.setdefault("purge_step", 0)  # in another folder the old rows stay; TensorBoard skips them
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
                loggers.append(cls(**arguments))
                getattr(loggers[-1], "experiment", None)  # opens its files, so that a bad folder is refused now
        except Exception as error:  # a logger's service may raise anything
            raise InputError(f"{location}: {' '.join(str(error).split())[:300]}") from error
    save_service_runs(specs, loggers, run_folder)
    return loggers


def _import(location: str, path: str) -> type[Logger]:
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{location}: cannot be imported ({error}); expected the path of a Lightning logger"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Logger)):
        raise InputError(f"{location}: expected the path of a Lightning logger, got another object")
    return cls


def _writes_plain_files(cls: type) -> bool:
    """Whether its files are directly in ``save_dir``: CSV and TensorBoard; others have folders by name and version."""
    return any(base.__name__ in ("CSVLogger", "TensorBoardLogger") for base in cls.__mro__)
