"""From a config to a finished run folder: puts the parts together for the command line."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fl_lightning.arguments import parse_config, to_yaml
from fl_lightning.callbacks import (
    AdapterExport,
    ClientLog,
    ClusterMonitor,
    Evaluation,
    FederatedCallback,
    FederatedRound,
    MemoryMonitor,
    RichProgress,
    RoundCheckpoint,
)
from fl_lightning.checkpoint import checkpoints, load_checkpoint
from fl_lightning.config import RunConfig
from fl_lightning.data.federation import ClientData, load_federation
from fl_lightning.device import launch, make_fabric
from fl_lightning.errors import InputError
from fl_lightning.evaluation import evaluate_run
from fl_lightning.exchange import Clients
from fl_lightning.federation import FederationState
from fl_lightning.files import check_output, create_run_folder, write_text
from fl_lightning.loggers import make_loggers
from fl_lightning.modeling.base import load_base_model
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.module import LoraClientModule
from fl_lightning.parallel import SeveralProcesses
from fl_lightning.seeding import derive_seed
from fl_lightning.spill import IN_MEMORY, Spill
from fl_lightning.state import problem_with
from fl_lightning.trainer import FederatedTrainer, make_clients

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a config means on this machine: everything is checked before anything is written."""

    fabric: Any
    module: LoraClientModule
    data: dict[str, ClientData]


def prepare(config: RunConfig) -> Parts:
    """Load base model and data, without writing anything.

    Raises:
        InputError: if the config, the data or the machine do not fit each other.
    """
    check_output(Path(config.output))
    fabric, dtype = make_fabric(config.fabric)
    launch(fabric)
    base, tokenizer = load_base_model(config.model, dtype=dtype, device=fabric.device)
    model = create_lora_model(
        base,
        config.lora.r,
        config.lora.lora_alpha,
        config.lora.lora_dropout,
        config.lora.target_modules,
        seed=derive_seed(config.seed, "lora_A"),
    )
    data = load_federation(
        config.data.root,
        tokenizer,
        clients_per_dept=config.data.clients_per_dept,
        max_records=config.data.max_records,
        max_length=config.data.max_length,
        eval_fraction=config.data.eval_fraction,
        seed=config.seed,
    )
    module = LoraClientModule(
        model, learning_rate=config.training.learning_rate, weight_decay=config.training.weight_decay
    )
    return Parts(fabric, module, data)


def make_callbacks(config: RunConfig, console: Console | None = None) -> list[FederatedCallback]:
    """The callbacks of a run, in the order in which their hooks run; the checkpoint comes last but for the bars."""
    return [
        FederatedRound(config.federation, seed=config.seed),
        ClientLog(),
        Evaluation(),
        ClusterMonitor(log_metrics=config.logging.cluster_logging, save_metadata=config.logging.save_cluster_metadata),
        MemoryMonitor(),
        AdapterExport(config.retention.client_exports),
        RoundCheckpoint(config.retention.checkpoints),
        RichProgress(console),
    ]


def fit(config: RunConfig, *, resume: Path | None = None, console: Console | None = None) -> Path | None:
    """Run `config` from its start, or from the last checkpoint of the run folder `resume`.

    Returns:
        The run folder; None on all processes but the first.

    Raises:
        InputError: for bad input; no run folder is made then.
        RunError: if the run cannot go on.
    """
    parts = prepare(config)
    if parts.fabric.global_rank > 0:  # another process of the run: the first one checks, asks and writes
        trainer = FederatedTrainer(fabric=parts.fabric, training=config.training)
        trainer.fit(parts.module, parts.data, clients=_clients(parts, config))
        return None
    callbacks = make_callbacks(config, console)
    state: FederationState | None = None
    history: list[tuple[int, dict[str, float]]] = []
    if resume is not None:
        state, history = _restore(resume, callbacks, parts.data)
        fresh = collect_lora_state(parts.module.model)
        problem = problem_with(fresh, state.initial)
        if problem or any(not torch.equal(fresh[name], tensor) for name, tensor in state.initial.items()):
            raise InputError(
                f"{resume}: the run began from another adapter ({problem or 'other values'}); "
                "seed, model and the lora block must stay as they were"
            )
    run_folder = resume or create_run_folder(Path(config.output))
    try:
        write_text(run_folder / "config.yaml", to_yaml(config))
        # A resumed run logs its history again, from the base model's row on.
        loggers: list[Any] = make_loggers(config.logging.loggers, run_folder, None if state is None else 0)
    except InputError:
        if resume is None:
            shutil.rmtree(run_folder)
        raise
    parts.fabric, _ = make_fabric(config.fabric, loggers)
    for logger in loggers:
        logger.log_hyperparams(config.to_dict())
    trainer = FederatedTrainer(
        fabric=parts.fabric,
        callbacks=callbacks,
        federation=config.federation,
        training=config.training,
        seed=config.seed,
        run_folder=run_folder,
    )
    status = "failed"
    try:
        trainer.fit(parts.module, parts.data, clients=_clients(parts, config), resume_from=state, history=history)
        status = "success"
    finally:
        for logger in loggers:  # Fabric never closes its loggers
            if hasattr(logger, "save"):
                logger.save()
            logger.finalize(status)
    return run_folder


def evaluate(run_folder: Path) -> dict[str, Any] | None:
    """Write ``federated_eval.json`` and ``client_eval_all_rounds.json`` of a finished run anew from its adapters.

    Returns:
        What stands in ``federated_eval.json``; None on all processes but the first.

    Raises:
        InputError: if the run has no config or no adapters.
    """
    config = load_config(run_folder / "config.yaml")
    parts = prepare(config)
    clients, initial = _clients(parts, config), collect_lora_state(parts.module.model)
    if not isinstance(clients, SeveralProcesses):
        return evaluate_run(run_folder, parts.data, clients, initial)
    if parts.fabric.global_rank > 0:
        clients.serve()
        return None
    result = evaluate_run(run_folder, parts.data, clients, initial)
    clients.stop()
    return result


def _clients(parts: Parts, config: RunConfig) -> Clients:
    at_once, parallelism = config.training.clients_at_once, config.fabric.parallelism
    base_too = config.fabric.strategy == "fsdp"
    return make_clients(parts.fabric, parts.module, parts.data, config.training, at_once, parallelism, base_too)


def _restore(
    run_folder: Path, callbacks: list[FederatedCallback], data: dict[str, ClientData]
) -> tuple[FederationState, list[tuple[int, dict[str, float]]]]:
    found = checkpoints(run_folder)
    if not found:
        raise InputError(f"{run_folder}: no checkpoint to resume from; start the run again without --resume")
    for left_behind in run_folder.glob(".states.*.tmp"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    state, extra = load_checkpoint(found[max(found)], Spill(run_folder).keep if len(data) > IN_MEMORY else None)
    departments = {client.department for client in data.values()}
    if set(state.departments) != departments:
        raise InputError(
            f"{run_folder}: its departments are {sorted(state.departments)}, data.root has {sorted(departments)}"
        )
    for callback in callbacks:
        if type(callback).__name__ in extra["callbacks"]:
            callback.load_state_dict(extra["callbacks"][type(callback).__name__])
    log.info("resuming %s after round %d", run_folder, state.round_num)
    return state, [(step, row) for step, row in extra["history"]]


def load_config(path: Path) -> RunConfig:
    """A config file as `fit` would read it.

    Raises:
        InputError: if it cannot be read.
    """
    return parse_config(["--config", str(path)])
