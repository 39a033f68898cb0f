"""Runs beside a finished run: of each client alone, of all clients as one department, and all of them on all records.

They are whole runs in the folder of the run, with its base, rounds and seed; a later call continues or skips them.

    personal/own/version_0      every client trains its own adapter, which is never averaged
    personal/own_2/version_0    the same from another start, under ``personal.own_adapters: 2``
    personal/root/version_0     all clients are averaged into one adapter, under ``personal.root: trained``
    personal/refit_*/version_0  the same, and the run itself (refit_department), on the selection records too
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from fl_lightning.config import (
    ClientClustersConfig,
    DeptClustersConfig,
    FederationConfig,
    LoggingConfig,
    PersonalConfig,
    RetentionConfig,
    RunConfig,
)
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.fingerprint import fingerprint_run
from fl_lightning.federation.state import FederationState
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.runs.build import RunComponents
from fl_lightning.runs.fit import open_run, run_fit
from fl_lightning.runs.resume import load_resume_state
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState
from fl_lightning.storage.components import own_component
from fl_lightning.storage.run_folder import locked
from fl_lightning.storage.run_layout import CONFIG, PERSONAL
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.round_schedule import count_steps

log = logging.getLogger(__name__)

Chain = Literal["own", "department", "root"]
WHAT = {"own": "each client's own adapter", "department": "the departments' adapters", "root": "one adapter of all"}
ROOT = "root"
"""The department of all clients."""


def train_chain(
    chain: Chain,
    run_folder: Path,
    config: RunConfig,
    components: RunComponents,
    clients: LocalClients,
    *,
    number: int = 1,
    refit: bool = False,
    console: Console | None = None,
) -> FederationState:
    """Train a run beside `run_folder`, unless it is finished.

    Args:
        chain: which.
        run_folder: of the finished run, locked by this process.
        config: of the finished run.
        components: of this config.
        clients: around the module of the components; their records are replaced while the chain trains.
        number: from 1; another one has other starts, orders and dropout.
        refit: whether the clients train on their selection records too.
        console: for progress bars; None is standard error.

    Returns:
        Its state after the last round, with each client's own adapter or the root's as ``final_adapter``.

    Raises:
        InputError: if the chain was begun with another config, base or records, or clients differ in rank.
        RunError: if it cannot go on.
    """
    if config.lora.is_mixed():
        raise InputError("lora.profiles: personalize expects one rank and scale for all clients, got several")
    name = f"{'refit_' if refit else ''}{chain}{f'_{number}' if number > 1 else ''}"
    folder = run_folder / PERSONAL / name / "version_0"
    is_begun = (folder / CONFIG).is_file()
    initial = collect_lora_state(components.module.model)
    rounds, take_rounds = rounds_of_chain(chain, config, components.data, initial)
    own_config = _config_of(chain, config, folder.parent, rounds)
    if number > 1:
        own_config = replace(own_config, seed=derive_seed(config.seed, chain, number))
    data = components.data if chain != "root" else as_one_department(components.data)
    if refit:
        data = {c: replace(client, train=[*client.train, *client.selection]) for c, client in data.items()}
    fingerprint = fingerprint_run(own_config, data, components.base_fingerprint)
    places = components.places if chain == "department" else None  # the others ask all clients
    chain_components = replace(components, data=data, places=places)
    if is_begun:
        state, _ = load_resume_state(chain_components, folder, fingerprint, rounds)
        if state is not None and state.round_num == rounds:
            return state
    if refit and config.training.early_stopping:  # the selection records train, so they can stop nothing
        before = _state_before_refit(chain, number, run_folder, config, components, clients, console)
        take_rounds = {name: best.round_num for name, best in before.best.items()}
    log.info("training %s for %d rounds%s", WHAT[chain], rounds, ", on all records" if refit else "")
    all_clients, clients.data = clients.data, data
    try:
        with (
            locked(folder) if is_begun else contextlib.nullcontext(),
            open_run(own_config, chain_components, fingerprint, folder if is_begun else None) as start,
        ):
            run_fit(
                start,
                own_config,
                chain_components,
                clients,
                console=console,
                command="personalize",
                take_rounds=take_rounds,
            )
    finally:
        clients.data = all_clients
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise InputError(f"{folder}: expected a checkpoint after the last round, got none; remove the folder")
    return checkpoint[0]


def rounds_of_chain(
    chain: Chain, config: RunConfig, data: Mapping[str, ClientData], initial: LoraState
) -> tuple[int, dict[str, int] | None]:
    """How long a chain trains: as many rounds as the run has steps of a department.

    Of a buffered run these differ: a client's own adapter is that after as many rounds as its department has made
    steps (early stopping chooses among the rounds of the longest instead), and the root has the mean number.

    Args:
        chain: which.
        config: of the run.
        data: {client_id: records} of the run.
        initial: the common start.

    Returns:
        (rounds, {client_id: the round that is taken}); None takes the last, or what early stopping chooses.
    """
    federation = config.federation
    if chain == "department" or federation.schedule.mode == "sync":
        return federation.rounds, None
    steps = count_steps(federation, config.training, data, initial, config.seed)
    if chain == "root":
        return math.ceil(federation.rounds / len(steps)), None
    last = None if config.training.early_stopping else {c: max(1, steps[c.split("/", 1)[0]]) for c in data}
    return max(steps.values()), last


def train_own_chains(
    run_folder: Path,
    config: RunConfig,
    components: RunComponents,
    clients: LocalClients,
    *,
    refit: bool = False,
    console: Console | None = None,
) -> dict[str, FederationState]:
    """{``own``, ``own 2``, …: state}: as many chains as ``personal.own_adapters`` says, see `train_chain`."""
    train = partial(train_chain, "own", run_folder, config, components, clients, refit=refit, console=console)
    return {own_component(number): train(number=number) for number in range(1, config.personal.own_adapters + 1)}


def _state_before_refit(
    chain: Chain,
    number: int,
    run_folder: Path,
    config: RunConfig,
    components: RunComponents,
    clients: LocalClients,
    console: Console | None,
) -> FederationState:
    """The state of the chain that the selection records have stopped."""
    if chain != "department":
        return train_chain(chain, run_folder, config, components, clients, number=number, console=console)
    checkpoint = newest_checkpoint(run_folder)
    assert checkpoint is not None  # the run is finished
    return checkpoint[0]


def _config_of(chain: Chain, config: RunConfig, output: Path, rounds: int) -> RunConfig:
    """The run's config with the federation of a chain, without what only its pages and services need."""
    federation = config.federation
    if federation.dept_clusters.mixes_predictions:  # a refit trains on the records that would set the weights
        unmixed = replace(federation.dept_clusters, mix="all", mixing_ratio=0.0)
        federation = replace(federation, dept_clusters=unmixed)
    if chain != "department":
        federation = FederationConfig(
            rounds=rounds,
            share="none" if chain == "own" else "all",
            combiner="fedavg",
            client_clusters=ClientClustersConfig(num_clusters=1),
            dept_clusters=DeptClustersConfig(enabled=False),
        )
    loggers = [{"class_path": "lightning.pytorch.loggers.CSVLogger"}]
    return replace(
        config,
        output=str(output),
        federation=federation,
        personal=config.personal if chain == "department" else PersonalConfig(),
        logging=LoggingConfig(loggers=loggers, samples=0),
        retention=RetentionConfig(
            client_exports=0 if federation.secure_aggregation else 1, checkpoints=1, first_rounds=0
        ),
    )


def as_one_department(data: Mapping[str, ClientData]) -> dict[str, ClientData]:
    """{``root/<department>.<client>``: records}, in the order of the clients.

    Example:
        >>> list(as_one_department({"hr/a": ClientData("hr", "a", [], [])}))
        ['root/hr.a']
    """
    moved = (replace(c, department=ROOT, client=f"{c.department}.{c.client}") for c in data.values())
    return {client.client_id: client for client in moved}
