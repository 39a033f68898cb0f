"""Run a comparison: one run after another in this process, as ``fit`` does it; finished runs are skipped.

    <folder>/<name>/seed_S/version_0     the run folder
    <folder>/<name>/seed_S/run.json      how the run ended and how long it took

All configs run with the first seed, then with the second, and so on: an interrupted comparison has complete pairs.
"""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fl_lightning import launch, signals
from fl_lightning.data.layout import true_clusters
from fl_lightning.errors import InputError, RunError
from fl_lightning.runs import fit as fitting
from fl_lightning.runs.build import build_components, make_local_clients
from fl_lightning.runs.comparison.plan import Plan
from fl_lightning.runs.comparison.report import Comparison
from fl_lightning.runs.comparison.statistics import read_run_metrics
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_folder import check_output, locked
from fl_lightning.storage.run_layout import CONFIG, EVALUATION

log = logging.getLogger(__name__)

RESULT = "run.json"
RUN_FOLDER = "version_0"


def check_plan(plan: Plan, root: Path) -> None:
    """Check every config against its data, its model and this machine, without writing anything.

    Raises:
        InputError: if one does not fit; the message names its file.
    """
    check_output(root)
    for name, config in plan.configs.items():
        single_device = replace(config.fabric, devices=1, parallelism="clients", strategy="auto")
        checked = replace(config, output=str(root), fabric=single_device)
        try:
            make_local_clients(build_components(checked), checked)
        except InputError as error:
            raise InputError(f"{plan.files[name]}: {error}") from error
        gc.collect()


def run_all(folder: Path, plan: Plan, *, new: bool) -> Comparison:
    """Run all runs that are not finished. A failed run is recorded, and the next one starts.

    Args:
        folder: of the comparison.
        plan: of the comparison.
        new: whether the folder is new; it is removed if the first run is refused for bad input.

    Raises:
        InputError: if a run is refused for bad input, or another process uses the folder.
        Stopped: by a signal; the comparison can be resumed.
    """
    todo = [(seed, name) for seed in plan.seeds for name in plan.configs]
    with locked(folder):
        for number, (seed, name) in enumerate(todo, 1):
            if _is_finished(folder / name / f"seed_{seed}"):
                continue
            log.info("run %d of %d: %s, seed %d", number, len(todo), name, seed)
            try:
                _run(folder, plan, name, seed)
            except InputError as error:
                if new and not any(folder.glob("*/seed_*/version_*")):
                    shutil.rmtree(folder)
                raise InputError(f"{plan.files[name]}, seed {seed}: {error}") from error
        return collect(folder, plan)


def collect(folder: Path, plan: Plan) -> Comparison:
    """The results of all finished runs.

    Raises:
        InputError: if a run's files are not as ``fit`` writes them.
    """
    runs: dict[str, dict[int, Any]] = {name: {} for name in plan.configs}
    failed = {}
    for name, config in plan.configs.items():
        truth = true_clusters(config.data.root)
        for seed in plan.seeds:
            output = folder / name / f"seed_{seed}"
            result = _read_result(output)
            if _is_finished(output):
                seconds, rounds = result.get("seconds"), config.federation.rounds
                own = config.federation.share == "none"
                runs[name][seed] = read_run_metrics(output / RUN_FOLDER, rounds, seconds=seconds, truth=truth, own=own)
            elif result.get("state") == "failed":
                failed[f"{name}, seed {seed}"] = str(result.get("reason"))
    return Comparison(plan.seeds, runs, failed)


def _run(folder: Path, plan: Plan, name: str, seed: int) -> None:
    """Start or resume one run, and record how it ended."""
    output = folder / name / f"seed_{seed}"
    config = replace(plan.configs[name], seed=seed, output=str(output))
    resume = output / RUN_FOLDER if (output / RUN_FOLDER / CONFIG).is_file() else None
    earlier = _read_result(output)
    # A killed run has recorded no result, so its seconds are unknown.
    earlier_seconds = earlier.get("seconds") if resume else 0.0
    (output / RESULT).unlink(missing_ok=True)
    start = time.perf_counter()

    def record(state: str, reason: str | None = None) -> None:
        seconds = None if earlier_seconds is None else earlier_seconds + time.perf_counter() - start
        write_json(output / RESULT, {"state": state, "seconds": seconds, "reason": reason})

    command = ["--resume", str(resume)] if resume else ["--config", str(folder / "configs" / f"{name}.yaml")]
    command += [] if resume else [*plan.overrides, "--seed", str(seed), "--output", str(output)]
    console = None if sys.stderr.isatty() else Console(quiet=True)  # progress is shown on a terminal only
    try:
        with launch.started(config.fabric.devices, ["fit", *command]):
            fitting.fit(config, resume=resume, console=console)
        record("finished")
    except RunError as error:
        record("failed", " ".join(str(error).split()))
        log.error("%s, seed %d failed: %s", name, seed, error)
    except InputError:
        if earlier:
            write_json(output / RESULT, earlier)
        raise
    except signals.Stopped:
        if output.is_dir():
            record("stopped")
        raise
    finally:
        if torch.distributed.is_initialized():  # its other processes have ended; the next run has new ones
            torch.distributed.destroy_process_group()
        gc.collect()  # models are in reference cycles, and a GPU may not have room for two


def _is_finished(output: Path) -> bool:
    is_evaluated = (output / RUN_FOLDER / EVALUATION).is_file()
    return _read_result(output).get("state") == "finished" and is_evaluated


def _read_result(output: Path) -> dict[str, Any]:
    """{state, seconds, reason} of a run; empty if it has not ended."""
    path = output / RESULT
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected {{state, seconds}}, got {type(value).__name__}; remove the file")
    return value
