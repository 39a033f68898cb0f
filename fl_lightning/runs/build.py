"""From a config to a finished run folder: puts the parts together for the command line."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fl_lightning import launch as processes
from fl_lightning import signals
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks import (
    AdapterExport,
    ClientLog,
    ClusterMonitor,
    Evaluation,
    FederatedCallback,
    FederatedRound,
    LoggerViews,
    MemoryMonitor,
    PhaseTimer,
    RichProgress,
    RoundCheckpoint,
    Samples,
)
from fl_lightning.clustering.tree import Tree, teams
from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config, to_yaml
from fl_lightning.data.client_data import ClientData, load_federation, with_teams
from fl_lightning.data.layout import true_clusters
from fl_lightning.errors import InputError, RunError
from fl_lightning.evaluation.departments import evaluate_run
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.fingerprint import check_identity, fingerprint, identity
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import Clients
from fl_lightning.federation.state import FederationState
from fl_lightning.loggers.factory import make_loggers
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.module import LoraClientModule
from fl_lightning.privacy import epsilon
from fl_lightning.seeding import derive_seed
from fl_lightning.state import num_bytes, problem_with
from fl_lightning.storage.files import sweep, write_text
from fl_lightning.storage.offload import IN_MEMORY, Spill
from fl_lightning.storage.run_folder import CONFIG, check_output, create_run_folder, held, warn_if_tight
from fl_lightning.trainer import FederatedTrainer, make_clients
from fl_lightning.training.device import launch, make_fabric
from fl_lightning.training.worker_processes import SeveralProcesses

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a config means on this machine: everything is checked before anything is written."""

    fabric: Any
    module: LoraClientModule
    tokenizer: Any
    data: dict[str, ClientData]
    base: str
    form: str = "fp32"


def prepare(config: RunConfig) -> Parts:
    """Load base model and data, without writing anything.

    Raises:
        InputError: if the config, the data or the machine do not fit each other.
    """

    def read(tokenizer: Any) -> dict[str, ClientData]:
        return load_federation(
            config.data.root,
            tokenizer,
            clients_per_dept=config.data.clients_per_dept,
            max_records=config.data.max_records,
            max_length=config.data.max_length,
            eval_fraction=config.data.eval_fraction,
            seed=config.seed,
        )

    groups = config.federation.hierarchy.groups
    parts = prepare_model(config, lambda tokenizer: with_teams(read(tokenizer), teams(groups)))
    Tree.of(groups, {client.department for client in parts.data.values()})
    config.lora.check_names(parts.data)
    return parts


def prepare_model(config: RunConfig, read: Callable[[Any], dict[str, ClientData]]) -> Parts:
    """Load the base model, and data as `read` makes them with its tokenizer, without writing anything.

    Raises:
        InputError: if the config, the data or the machine do not fit each other.
    """
    check_output(Path(config.output))
    fabric, dtype = make_fabric(config.fabric)
    launch(fabric)
    base, tokenizer = load_base_model(config.model, dtype=dtype, device=fabric.device)
    weights = fingerprint(base) if processes.is_first() else ""
    form = "4bit" if config.model.load_in_4bit else str(dtype).removeprefix("torch.")
    model = create_lora_model(
        base,
        config.lora.r,
        config.lora.lora_alpha,
        config.lora.lora_dropout,
        config.lora.target_modules,
        use_rslora=config.lora.use_rslora,
        seed=derive_seed(config.seed, "lora_A"),
    )
    data = read(tokenizer)
    if config.federation.guard.name == "dp":  # fails here, and not after a round, where the library is missing
        privacy = config.federation.privacy
        epsilon(privacy.noise_multiplier, config.federation.rounds, privacy.delta, clients=1, asked=1)
    module = LoraClientModule(
        model, learning_rate=config.training.learning_rate, weight_decay=config.training.weight_decay
    )
    return Parts(fabric, module, tokenizer, data, weights, form)


def make_callbacks(
    config: RunConfig,
    console: Console | None = None,
    run_identity: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    more: Sequence[FederatedCallback] = (),
) -> list[FederatedCallback]:
    """The callbacks of a run, in the order in which their hooks run; the checkpoint comes last but for the bars."""
    kept = config.retention
    return [
        FederatedRound(config.federation, seed=config.seed),
        ClientLog(),
        Evaluation(),
        PhaseTimer(),
        ClusterMonitor(
            log_metrics=config.logging.cluster_logging,
            save_metadata=config.logging.save_cluster_metadata,
            truth=true_clusters(config.data.root),
        ),
        MemoryMonitor(),
        *([] if tokenizer is None else [Samples(tokenizer, config.logging.samples)]),
        LoggerViews(config.to_dict()),
        AdapterExport(kept.client_exports, kept.best),
        *more,
        RoundCheckpoint(kept.checkpoints, kept.best, run_identity),
        RichProgress(console),
    ]


def fit(config: RunConfig, *, resume: Path | None = None, console: Console | None = None) -> Path | None:
    """Run `config` from its start, or from where the run folder `resume` stopped.

    Returns:
        The run folder; None on all processes but the first.

    Raises:
        InputError: for bad input; no run folder is made then, and one that is resumed stays as it was.
        RunError: if the run cannot go on.
    """
    if not processes.is_first():  # the first one checks, asks and writes
        parts = prepare(config)
        trainer = FederatedTrainer(fabric=parts.fabric, training=config.training)
        trainer.fit(parts.module, parts.data, clients=clients_here(parts, config))
        return None
    if resume is not None:
        with held(resume):
            parts = prepare(config)
            run_identity = identity(config, parts.data, parts.base)
            state, extra = resumed(parts, resume, run_identity)
            # A resumed run logs its history again, from the base model's row on.
            loggers = make_loggers(config.logging.loggers, resume, fresh=False)
            return fit_into(resume, config, parts, loggers, run_identity, state=state, extra=extra, console=console)
    parts = prepare(config)
    run_folder = create_run_folder(Path(config.output), to_yaml(config))
    with held(run_folder):
        try:
            loggers = make_loggers(config.logging.loggers, run_folder)
        except InputError:
            shutil.rmtree(run_folder)
            raise
        return fit_into(run_folder, config, parts, loggers, identity(config, parts.data, parts.base), console=console)


def fit_into(
    run_folder: Path,
    config: RunConfig,
    parts: Parts,
    loggers: list[Any],
    run_identity: dict[str, Any],
    *,
    state: FederationState | None = None,
    extra: Mapping[str, Any] | None = None,
    console: Console | None = None,
    clients: Clients | None = None,
    more: Sequence[FederatedCallback] = (),
    command: str = "fit",
) -> Path:
    """Fit into a run folder that this process holds, from a state with what its checkpoint held besides."""
    extra = extra or {}
    tokens = sum(len(example) for client in parts.data.values() for example in client.train)
    log.info("%d clients%s", len(parts.data), f", {tokens} training tokens an epoch" if tokens else "")
    if state is not None:
        log.info("resuming %s after round %d", run_folder, state.round_num)
    parts.fabric, _ = make_fabric(config.fabric, loggers)
    callbacks = make_callbacks(config, console, run_identity, parts.tokenizer, more)
    for callback in callbacks:
        if type(callback).__name__ in extra.get("callbacks", {}):
            callback.load_state_dict(extra["callbacks"][type(callback).__name__])
    trainer = FederatedTrainer(
        fabric=parts.fabric,
        callbacks=callbacks,
        federation=config.federation,
        training=config.training,
        lora=config.lora,
        seed=config.seed,
        run_folder=run_folder,
    )
    status = "failed"
    try:
        write_text(run_folder / CONFIG, to_yaml(config))
        for logger in loggers:
            logger.log_hyperparams(config.to_dict())
        warn_if_tight(run_folder, _bytes_to_write(config, parts))
        trainer.fit(
            parts.module,
            parts.data,
            clients=clients or clients_here(parts, config),
            resume_from=state,
            history=[(step, row) for step, row in extra.get("history", ())],
            journal=Journal(run_folder / "checkpoints", trainer.writer),
        )
        status = "success"
    except OSError as error:
        raise RunError(
            f"{error.filename or run_folder}: {error.strerror or error}; what was saved before stands: mend it, then "
            f"fl-lightning {command} --resume {shlex.quote(str(run_folder))}"
        ) from error
    except signals.Stopped as stop:
        stop.run_folder = run_folder
        raise
    finally:
        for logger in loggers:  # Fabric never closes its loggers
            with contextlib.suppress(*(() if status == "success" else (OSError,))):
                if hasattr(logger, "save"):
                    logger.save()
                logger.finalize(status)
    return run_folder


def _bytes_to_write(config: RunConfig, parts: Parts) -> int:
    """An estimate of what the run will have on the disk at its end: adapters and checkpoints."""
    adapter = num_bytes(collect_lora_state(parts.module.model))
    clients, departments = len(parts.data), len({client.department for client in parts.data.values()})
    rounds, kept = config.federation.rounds, config.retention
    exports = min(rounds, kept.client_exports + kept.best) if kept.client_exports else rounds
    saved = min(rounds, kept.checkpoints + kept.best) if kept.checkpoints else rounds
    return adapter * (departments + exports * clients + saved * (1 + departments) + clients)


def evaluate(run_folder: Path) -> dict[str, Any] | None:
    """Write ``federated_eval.json`` and ``client_eval_all_rounds.json`` of a finished run anew from its adapters.

    Returns:
        What stands in ``federated_eval.json``; None on all processes but the first.

    Raises:
        InputError: if the run has no config or no adapters.
    """
    config = load_config(run_folder / CONFIG)
    if not processes.is_first():
        parts = prepare(config)
        clients = clients_here(parts, config)
        if isinstance(clients, SeveralProcesses):
            clients.serve()
        return None
    with held(run_folder):
        parts = prepare(config)
        clients, initial = clients_here(parts, config), collect_lora_state(parts.module.model)
        any_rank = config.federation.combiner in KEEP_PRODUCTS
        tree = Tree.of(config.federation.hierarchy.groups, {client.department for client in parts.data.values()})
        result = evaluate_run(run_folder, parts.data, clients, initial, tree=tree, any_rank=any_rank)
        if isinstance(clients, SeveralProcesses):
            clients.stop()
        return result


def clients_here(parts: Parts, config: RunConfig) -> Clients:
    """The clients on this machine's devices."""
    at_once, parallelism = config.training.clients_at_once, config.fabric.parallelism
    base_too = config.fabric.strategy == "fsdp"
    pools = share_policy(config.federation.share).pools
    return make_clients(
        parts.fabric,
        parts.module,
        parts.data,
        config.training,
        at_once,
        parallelism,
        base_too,
        pools=pools,
        memory_limit_mb=config.fabric.memory_limit_mb,
    )


def resumed(
    parts: Parts, run_folder: Path, run_identity: dict[str, Any]
) -> tuple[FederationState | None, dict[str, Any]]:
    """(state, extra) of the newest whole checkpoint; (None, {}) of a run that was stopped before its first one.

    Raises:
        InputError: if there is none though the run has results, or if it is another run's.
    """
    sweep(run_folder)
    found = newest_checkpoint(run_folder, Spill(run_folder).keep if len(parts.data) > IN_MEMORY else None)
    if found is None:
        if any((run_folder / name).exists() for name in ("adapters", "client_exports")):
            raise InputError(f"{run_folder}: no checkpoint to resume from; start the run again without --resume")
        log.info("%s was stopped before its first checkpoint and begins anew", run_folder)
        return None, {}
    state, extra = found
    if "identity" not in extra:
        raise InputError(f"{run_folder}: its checkpoint does not say what the run is made of; start a new run")
    check_identity(extra["identity"], run_identity)
    fresh = collect_lora_state(parts.module.model)
    problem = problem_with(fresh, state.initial)
    if problem or any(not torch.equal(fresh[name], tensor) for name, tensor in state.initial.items()):
        raise InputError(
            f"{run_folder}: the run began from another adapter ({problem or 'other values'}), though config and base "
            "are the same; wanted the versions of torch and peft it began with"
        )
    return state, extra


def load_config(path: Path) -> RunConfig:
    """A config file as `fit` would read it.

    Raises:
        InputError: if it cannot be read.
    """
    return parse_config(["--config", str(path)])
