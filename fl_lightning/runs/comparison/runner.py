"""Runs of a comparison, one after another in this process, each as ``fit`` does it; what is finished is passed over.

    <folder>/<name>/seed_S/version_0     the run folder
    <folder>/<name>/seed_S/run.json      how the run ended and how long it took

Seeds go from the first to the last with all configs at each, so that an early end leaves whole pairs.
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
from fl_lightning.runs.build import build_components
from fl_lightning.runs.comparison.plan import Plan
from fl_lightning.runs.comparison.report import Comparison
from fl_lightning.runs.comparison.statistics import read_run_metrics
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_folder import CONFIG, check_output, locked

log = logging.getLogger(__name__)

RUN = "run.json"


def check(plan: Plan, root: Path) -> None:
    """Check every config against its data, its model and this machine, without writing anything.

    Raises:
        InputError: naming the config.
    """
    check_output(root)
    for name, config in plan.configs.items():
        alone = replace(config.fabric, devices=1, parallelism="clients", strategy="auto")
        try:
            build_components(replace(config, output=str(root), fabric=alone))
        except InputError as error:
            raise InputError(f"{plan.files[name]}: {error}") from error
        gc.collect()


def run_all(folder: Path, plan: Plan, *, new: bool) -> Comparison:
    """Run what is not finished. A run that fails is noted and the others go on.

    Args:
        folder: of the comparison.
        plan: what it is made of.
        new: whether the folder was made just now; it is removed if already the first run is refused.

    Raises:
        InputError: if a run is refused, or another process is at work in the folder.
        Stopped: by a signal; the folder can be gone on with.
    """
    todo = [(seed, name) for seed in plan.seeds for name in plan.configs]
    with locked(folder):
        for number, (seed, name) in enumerate(todo, 1):
            if _is_finished(folder, name, seed):
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
    """The figures of all runs that are finished.

    Raises:
        InputError: if a run's files are not as ``fit`` writes them.
    """
    runs: dict[str, dict[int, Any]] = {name: {} for name in plan.configs}
    failed = {}
    for name, config in plan.configs.items():
        truth = true_clusters(config.data.root)
        for seed in plan.seeds:
            note = _note(folder / name / f"seed_{seed}")
            if _is_finished(folder, name, seed):
                version = folder / name / f"seed_{seed}" / "version_0"
                seconds = note.get("seconds")
                runs[name][seed] = read_run_metrics(version, config.federation.rounds, seconds=seconds, truth=truth)
            elif note.get("state") == "failed":
                failed[f"{name}, seed {seed}"] = str(note.get("reason"))
    return Comparison(plan.seeds, runs, failed)


def _run(folder: Path, plan: Plan, name: str, seed: int) -> None:
    """One run, from its start or from where it stopped, and the note of how it ended."""
    place = folder / name / f"seed_{seed}"
    config = replace(plan.configs[name], seed=seed, output=str(place))
    resume = place / "version_0" if (place / "version_0" / CONFIG).is_file() else None
    before = _note(place)
    # A run that was killed left no note: nobody knows how long it had taken.
    spent = before.get("seconds") if resume else 0.0
    (place / RUN).unlink(missing_ok=True)
    started = time.perf_counter()

    def note(state: str, reason: str | None = None) -> None:
        seconds = None if spent is None else spent + time.perf_counter() - started
        write_json(place / RUN, {"state": state, "seconds": seconds, "reason": reason})

    command = ["--resume", str(resume)] if resume else ["--config", str(folder / "configs" / f"{name}.yaml")]
    command += [] if resume else [*plan.overrides, "--seed", str(seed), "--output", str(place)]
    console = None if sys.stderr.isatty() else Console(quiet=True)  # bars and tables of rounds are for who looks on
    try:
        with launch.started(config.fabric.devices, ["fit", *command]):
            fitting.fit(config, resume=resume, console=console)
        note("finished")
    except RunError as error:
        note("failed", " ".join(str(error).split()))
        log.error("%s, seed %d failed: %s", name, seed, error)
    except InputError:
        if before:
            write_json(place / RUN, before)
        raise
    except signals.Stopped:
        if place.is_dir():
            note("stopped")
        raise
    finally:
        if torch.distributed.is_initialized():  # with processes that are gone; the next run has others
            torch.distributed.destroy_process_group()
        gc.collect()  # models hold on to themselves in circles; a GPU has no room for two


def _is_finished(folder: Path, name: str, seed: int) -> bool:
    place = folder / name / f"seed_{seed}"
    return _note(place).get("state") == "finished" and (place / "version_0" / "federated_eval.json").is_file()


def _note(place: Path) -> dict[str, Any]:
    value = read_json(place / RUN) if (place / RUN).is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"{place / RUN}: got {type(value).__name__}, wanted {{state, seconds}}; remove it")
    return value
