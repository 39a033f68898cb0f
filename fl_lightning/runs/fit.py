"""Train a config into a new run folder, or continue a run."""

from __future__ import annotations

import contextlib
import logging
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fl_lightning import launch, signals
from fl_lightning.callbacks import FederatedCallback
from fl_lightning.callbacks.round_checkpoint import restore_callbacks
from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import to_yaml
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.checkpoint_schema import CheckpointExtra
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTransport
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.federation.update_archive import UpdateArchive
from fl_lightning.loggers.factory import make_loggers
from fl_lightning.loggers.service_runs import read_service_runs
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.runs.build import (
    RunComponents,
    build_components,
    fingerprint_components,
    make_callbacks,
    make_local_clients,
)
from fl_lightning.runs.canaries import write_canaries
from fl_lightning.runs.excluded import check_excluded
from fl_lightning.runs.resume import load_resume_state
from fl_lightning.state import num_bytes
from fl_lightning.storage.files import write_text
from fl_lightning.storage.run_folder import create_run_folder, locked, warn_low_disk
from fl_lightning.storage.run_layout import CHECKPOINTS, CONFIG, UPDATES
from fl_lightning.trainer import FederatedTrainer
from fl_lightning.training.device import make_fabric

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """Where a run starts or continues.

    Attributes:
        run_folder: locked by this process.
        run_fingerprint: of config, base model and data.
        loggers: that write into the run folder.
        state: to continue from; None starts at round 1.
        extra: what the checkpoint holds besides the state.
        continued_loggers: those of `loggers` that go on in the tracking service's run, so they have the rows already.
    """

    run_folder: Path
    run_fingerprint: dict[str, Any]
    loggers: list[Any]
    state: FederationState | None = None
    extra: CheckpointExtra = field(default_factory=CheckpointExtra)
    continued_loggers: Sequence[Any] = ()


def fit(config: RunConfig, *, resume: Path | None = None, console: Console | None = None) -> Path | None:
    """Run `config` from its start, or continue the run folder `resume`.

    Returns:
        The run folder; None on all processes but the first.

    Raises:
        InputError: for bad input. No run folder is made then, and a run that is continued stays unchanged.
        RunError: if the run cannot go on.
    """
    if not launch.is_first():  # the first process checks, assigns work and writes
        components = build_components(config, resume)
        trainer = FederatedTrainer(fabric=components.fabric, training=config.training)
        trainer.fit(components.module, components.data, clients=make_local_clients(components, config))
        return None
    config.federation.schedule.check_in_one_process()
    if resume is None:
        check_excluded(config)
    with contextlib.nullcontext() if resume is None else locked(resume):
        components = build_components(config, resume)
        clients = make_local_clients(components, config)  # checks the base model before a run folder exists
        run_fingerprint = fingerprint_components(config, components)
        with open_run(config, components, run_fingerprint, resume) as start:
            write_canaries(start.run_folder, components.canaries)
            return run_fit(start, config, components, clients, console=console)


@contextlib.contextmanager
def open_run(
    config: RunConfig, components: RunComponents, run_fingerprint: dict[str, Any], resume: Path | None
) -> Iterator[RunStart]:
    """A new run folder, locked while the block runs, or the run folder `resume`, which the caller has locked.

    Raises:
        InputError: if a logger cannot be made, which removes the new folder, or if `resume` does not fit.
    """
    loggers_config = config.logging.loggers
    if resume is not None:
        state, extra = load_resume_state(components, resume, run_fingerprint, config.federation.rounds)
        service_runs = read_service_runs(loggers_config, resume)
        loggers = make_loggers(loggers_config, resume, fresh=False)
        continued = [logger for logger, service_run in zip(loggers, service_runs, strict=True) if service_run]
        yield RunStart(resume, run_fingerprint, loggers, state, extra, continued)
        return
    run_folder = create_run_folder(Path(config.output), to_yaml(config))
    with locked(run_folder):
        try:
            loggers = make_loggers(loggers_config, run_folder)
        except InputError:
            shutil.rmtree(run_folder)
            raise
        yield RunStart(run_folder, run_fingerprint, loggers)


def run_fit(
    start: RunStart,
    config: RunConfig,
    components: RunComponents,
    clients: ClientTransport,
    *,
    console: Console | None = None,
    extra_callbacks: Sequence[FederatedCallback] = (),
    command: str = "fit",
    take_rounds: Mapping[str, int] | None = None,
    reuse: Path | None = None,
) -> Path:
    """Fit into a run folder that this process has locked.

    Args:
        start: from `open_run`.
        config: of the run.
        components: of this config.
        clients: fit and evaluate adapters.
        console: for progress bars; None is standard error.
        extra_callbacks: see `make_callbacks`.
        command: that continues the run, for error messages.
        take_rounds: see `FederatedRound`.
        reuse: folder of another run's `UpdateArchive`, from which updates with the same inputs are taken.

    Returns:
        The run folder.

    Raises:
        RunError: if the run cannot go on.
    """
    run_folder, state = start.run_folder, start.state
    log.info("%d clients%s", len(components.data), _size_of(components.data))
    if state is not None:
        log.info("resuming %s after round %d", run_folder, state.round_num)
    components.fabric, _ = make_fabric(config.fabric, start.loggers)
    callbacks = make_callbacks(
        config, console, start.run_fingerprint, components.tokenizer, extra_callbacks, take_rounds
    )
    restore_callbacks(callbacks, start.extra)
    trainer = FederatedTrainer(
        fabric=components.fabric,
        callbacks=callbacks,
        federation=config.federation,
        training=config.training,
        lora=config.lora,
        personal=config.personal,
        evaluation=config.evaluation,
        seed=config.seed,
        run_folder=run_folder,
    )
    archive = None
    if config.retention.updates or reuse is not None:
        kept = run_folder / UPDATES if config.retention.updates else None
        context = _fit_context(config, components, start.run_fingerprint)
        archive = UpdateArchive(kept, trainer.writer, components.data, context, reuse)
    with _closing_loggers(start.loggers):
        try:
            write_text(run_folder / CONFIG, to_yaml(config))
            for logger in start.loggers:
                if logger not in start.continued_loggers:  # MLflow refuses another value, such as more rounds
                    logger.log_hyperparams(config.to_dict())
            warn_low_disk(run_folder, _estimate_disk_bytes(config, components))
            trainer.fit(
                components.module,
                components.data,
                clients=clients,
                resume_from=state,
                history=start.extra.history,
                continued_loggers=start.continued_loggers,
                places=components.places,
                journal=Journal(run_folder / CHECKPOINTS, trainer.writer, archive),
            )
            if archive is not None and reuse is not None:
                log.info("%d updates were taken from %s", archive.reused, reuse)
        except OSError as error:
            raise RunError(
                f"{error.filename or run_folder}: {error.strerror or error}; the last checkpoint is intact: fix the "
                f"cause, then fl-lightning {command} --resume {shlex.quote(str(run_folder))}"
            ) from error
        except signals.Stopped as stop:
            stop.run_folder = run_folder
            raise
    return run_folder


@contextlib.contextmanager
def _closing_loggers(loggers: Sequence[Any]) -> Iterator[None]:
    """Save and finalize the loggers when the block ends, which Fabric never does.

    After a failure their own `OSError` is suppressed, so that the first error is the one that is raised.
    """
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            with contextlib.suppress(*(() if status == "success" else (OSError,))):
                if hasattr(logger, "save"):
                    logger.save()
                logger.finalize(status)


def _size_of(data: Mapping[str, ClientData]) -> str:
    """The tokens of an epoch, for the log."""
    if isinstance(data, LazyClients):
        return "; records are read and checked when a client is first needed (inspect checks all)"
    num_tokens = sum(len(example) for client in data.values() for example in client.train)
    return f", {num_tokens} training tokens an epoch" if num_tokens else ""


def _fit_context(config: RunConfig, components: RunComponents, run_fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What the bits of all fits of a run depend on, besides tasks and records; JSON values."""
    fabric, prefixes = components.fabric, ("training.", "lora.", "model.", "fabric.precision")
    values, device = run_fingerprint.get("config", {}), fabric.device
    return {
        "config": {k: v for k, v in values.items() if k.startswith(prefixes) and k != "lora.profiles"},
        "base": run_fingerprint.get("base", ""),
        "precision": components.base_precision,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "lightning")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": fabric.world_size if config.fabric.parallelism == "data" else 1,
    }


def _estimate_disk_bytes(config: RunConfig, components: RunComponents) -> int:
    """Estimated size of adapters and checkpoints at the end of the run, in bytes."""
    adapter = num_bytes(collect_lora_state(components.module.model))
    num_clients = len(components.data)
    num_departments = len(clients_by_department(components.data))
    rounds, retention = config.federation.rounds, config.retention
    exports = min(rounds, retention.client_exports + retention.best) if retention.client_exports else rounds
    kept = retention.checkpoints + retention.best + retention.first_rounds
    checkpoints = min(rounds, kept) if retention.checkpoints else rounds
    if config.federation.secure_aggregation:
        exports = 0
    own_adapters = checkpoints * num_clients if config.personal.own == "during" else 0
    return adapter * (
        num_departments + exports * num_clients + checkpoints * (1 + num_departments) + num_clients + own_adapters
    )
