"""From a config to what a run needs: base model, data, callbacks, and the clients on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console

from fl_lightning import launch
from fl_lightning.aggregation.secure import check_departments
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks import (
    AdapterExport,
    ClientLog,
    ClusterMonitor,
    DepartmentMixtures,
    Evaluation,
    FederatedCallback,
    FederatedRound,
    LoggerViews,
    MemoryMonitor,
    PhaseTimer,
    RichProgress,
    RoundCheckpoint,
    RunLedger,
    Samples,
)
from fl_lightning.clustering.tree import Tree, client_teams
from fl_lightning.config import FederationConfig, RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.data.canaries import ClientCanaries, add_canaries
from fl_lightning.data.chat_template import pin_chat_template, pin_date
from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.exclusion import is_excluded
from fl_lightning.data.layout import true_clusters
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.data.teams import regroup_clients
from fl_lightning.evaluation.panel import EvaluationPanel
from fl_lightning.federation.client_profiles import client_profiles
from fl_lightning.federation.fingerprint import fingerprint_model, fingerprint_run
from fl_lightning.federation.protocol import ClientTransport
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.limits import check_token_ids, limit_length
from fl_lightning.modeling.lora import create_lora_model
from fl_lightning.module import LoraClientModule
from fl_lightning.privacy import epsilon
from fl_lightning.privacy.secure_aggregation.requirements import check_installed
from fl_lightning.provenance.signing import load_private_key
from fl_lightning.runs.canaries import build_canaries
from fl_lightning.runs.excluded import client_places
from fl_lightning.seeding import derive_seed
from fl_lightning.storage.run_folder import check_output
from fl_lightning.storage.run_layout import CONFIG
from fl_lightning.training.client_sampling import num_sampled
from fl_lightning.training.clients import make_clients
from fl_lightning.training.device import launch_fabric, make_fabric

log = logging.getLogger(__name__)


@dataclass
class RunComponents:
    """The parts that a config asks for, loaded and checked; nothing has been written yet.

    Attributes:
        fabric: launched.
        module: around the PEFT model.
        tokenizer: of the base model.
        data: {client_id: tokenized records}.
        base_fingerprint: digest of the base model's weights; empty on all processes but the first.
        base_precision: of the base model's weights: ``4bit``, or a torch dtype such as ``float32``.
        canaries: {client_id: canaries}, of which `data` has those that are in; empty without ``audit.canaries``.
        places: ids of all clients, those that `data.exclude` leaves out in their places; None if there are none.
    """

    fabric: Fabric
    module: LoraClientModule
    tokenizer: Any
    data: Mapping[str, ClientData]
    base_fingerprint: str
    base_precision: str = "fp32"
    canaries: Mapping[str, ClientCanaries] = field(default_factory=dict)
    places: Sequence[str] | None = None


def build_components(config: RunConfig, run_folder: Path | None = None) -> RunComponents:
    """Load base model and data without writing anything.

    Args:
        config: of the run.
        run_folder: of the run, whose canaries are read; None, or a folder without them, makes them anew.

    Raises:
        InputError: if config, data and machine do not fit together.
    """
    groups = config.federation.hierarchy.groups

    def load_data(tokenizer: Any, max_length: int) -> Mapping[str, ClientData]:
        data = load_clients(
            config.data.root,
            tokenizer,
            clients_per_dept=config.data.max_clients,
            max_records=config.data.max_records,
            max_length=max_length,
            eval_fraction=config.data.eval_fraction,
            selection=config.data.selection_fraction,
            eval_records=config.evaluation.records,
            columns=config.data.columns,
            seed=config.seed,
            token_store=config.data.token_store,
            exclude=config.data.exclude,
            exclude_records=config.data.exclude_records,
        )
        teams = {c: team for c, team in client_teams(groups).items() if not is_excluded(c, config.data.exclude)}
        return regroup_clients(data, teams)

    components = build_model_components(config, load_data)
    check_sums(config.federation, components.data)
    if config.audit.canaries:
        base, device = components.module.model, components.fabric.device
        components.canaries = build_canaries(config, components.data, base, components.tokenizer, device, run_folder)
        components.data = add_canaries(components.data, components.canaries)
    components.places = client_places(config, components.data)
    build_tree(config, components.data)
    if config.federation.schedule.clients.trace is not None:  # one that cannot be used is refused now
        profile_of = client_profiles(config.federation.schedule.clients, components.data, config.seed)
        for client_id in components.data:
            profile_of(client_id)
    config.lora.check_names(components.places or components.data)
    return components


def check_sums(federation: FederationConfig, client_ids: Iterable[str]) -> None:
    """Check that a round asks enough clients of each department for secure aggregation, if it is on.

    Raises:
        InputError: if one has too few.
    """
    sampled = partial(
        num_sampled, clients_per_round=federation.clients_per_round, client_fraction=federation.client_fraction
    )
    check_departments(federation, client_ids, sampled)


def build_model_components(
    config: RunConfig, load_data: Callable[[Any, int], Mapping[str, ClientData]]
) -> RunComponents:
    """Load the base model, and the data by a function of its tokenizer and the tokens per record; nothing is written.

    Raises:
        InputError: if config, data and machine do not fit together.
    """
    check_output(Path(config.output))
    load_sign_key(config)  # one that cannot be used is refused now
    true_clusters(config.data.root)  # a malformed file is refused now, not when the run folder exists
    fabric, dtype = make_fabric(config.fabric)
    launch_fabric(fabric)
    base, tokenizer = load_base_model(config.model, dtype=dtype, device=fabric.device)
    pin_date(config.data, tokenizer)
    pin_chat_template(tokenizer, config.data)
    if not find_end_tokens(tokenizer):
        log.warning(
            "answers will not end: the base has no token that ends them, neither in its chat template nor in its "
            "tokenizer; data.chat_template takes a file with a template that has one"
        )
    base_fingerprint = fingerprint_model(base) if launch.is_first() else ""
    base_precision = "4bit" if config.model.load_in_4bit else str(dtype).removeprefix("torch.")
    model = create_lora_model(
        base,
        config.lora.r,
        config.lora.lora_alpha,
        config.lora.lora_dropout,
        config.lora.target_modules,
        use_rslora=config.lora.use_rslora,
        seed=derive_seed(config.seed, "lora_A"),
    )
    data = load_data(tokenizer, limit_length(config.data.max_length, base))
    check_token_ids(data, base, tokenizer)
    if config.federation.guard.name == "dp":  # a missing dp-accounting fails here, not after the first round
        privacy = config.federation.privacy
        epsilon(privacy.noise_multiplier, config.federation.rounds, privacy.delta, clients=1, asked=1)
    if config.federation.secure_aggregation:  # so do missing libraries
        check_installed()
    module = LoraClientModule(
        model, learning_rate=config.training.learning_rate, weight_decay=config.training.weight_decay
    )
    return RunComponents(fabric, module, tokenizer, data, base_fingerprint, base_precision)


def fingerprint_components(config: RunConfig, components: RunComponents) -> dict[str, Any]:
    """The fingerprint of a run, see `fingerprint_run`; of a large federation the evaluated clients are hashed."""
    data = components.data
    if not isinstance(data, LazyClients):
        return fingerprint_run(config, data, components.base_fingerprint)
    panel = EvaluationPanel.draw(data, config.evaluation, config.seed)
    return fingerprint_run(config, panel.data, components.base_fingerprint, client_ids=data)


def load_sign_key(config: RunConfig) -> Any:
    """The operator's private key; None if the config names none.

    Raises:
        InputError: if it cannot be used.
    """
    return None if config.ledger.sign_key is None else load_private_key(Path(config.ledger.sign_key))


def build_tree(config: RunConfig, data: Mapping[str, ClientData]) -> Tree:
    """The tree of groups above the departments of the data.

    Raises:
        InputError: if a group names a department that has no data.
    """
    return Tree.of(config.federation.hierarchy.groups, {client_id.split("/", 1)[0] for client_id in data})


def make_callbacks(
    config: RunConfig,
    console: Console | None = None,
    run_fingerprint: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    extra_callbacks: Sequence[FederatedCallback] = (),
    take_rounds: Mapping[str, int] | None = None,
) -> list[FederatedCallback]:
    """The callbacks of a run, in the order in which their hooks run.

    `FederatedRound`, which alone changes the federation's state, comes first; `RoundCheckpoint` comes after every
    callback that writes.

    Args:
        config: of the run.
        console: for progress bars; None is standard error.
        run_fingerprint: saved in every checkpoint, to refuse a resume with another config, base or data.
        tokenizer: for sample answers; None generates none.
        extra_callbacks: called just before the checkpoint is written.
        take_rounds: see `FederatedRound`.
    """
    retention = config.retention
    log_metrics, save_metadata = config.logging.cluster_logging, config.logging.save_cluster_metadata
    mixtures = DepartmentMixtures(log_metrics=log_metrics, save_metadata=save_metadata)
    return [
        FederatedRound(take_rounds=take_rounds),
        ClientLog(),
        Evaluation(),
        *([mixtures] if config.federation.dept_clusters.mixes_predictions else []),
        PhaseTimer(),
        ClusterMonitor(log_metrics=log_metrics, save_metadata=save_metadata, truth=true_clusters(config.data.root)),
        MemoryMonitor(),
        *([] if tokenizer is None else [Samples(tokenizer, config.logging.samples)]),
        LoggerViews(config.to_dict()),
        AdapterExport(retention.client_exports, retention.best),
        *extra_callbacks,
        *([RunLedger(run_fingerprint, load_sign_key(config))] if config.ledger.enabled else []),
        RoundCheckpoint(retention.checkpoints, retention.best, run_fingerprint, retention.first_rounds),
        RichProgress(console),
    ]


def make_local_clients(components: RunComponents, config: RunConfig) -> ClientTransport:
    """The clients on this machine's devices.

    Raises:
        InputError: if they cannot train with this base and device, or the base lacks layers that are to be shared.
    """
    policy = share_policy(config.federation.share, config.federation.share_layers)
    policy.check_layers([name for name, _ in components.module.model.named_parameters() if "lora_" in name])
    return make_clients(
        components.fabric,
        components.module,
        components.data,
        config.training,
        parallelism=config.fabric.parallelism,
        shard_base_model=config.fabric.strategy == "fsdp",
        is_central=policy.is_central,
        memory_limit_mb=config.fabric.memory_limit_mb,
    )


def load_run_config(run_folder: Path) -> RunConfig:
    """The config of a run, read as ``fit`` reads it.

    Raises:
        InputError: if it cannot be read.
    """
    return parse_config(["--config", str(run_folder / CONFIG)])
