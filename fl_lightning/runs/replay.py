"""Computes rounds of a finished run again, and compares them with their lines in its ledger. Writes nothing."""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fl_lightning.callbacks import FederatedRound, RunLedger
from fl_lightning.config import LedgerConfig, RunConfig
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint
from fl_lightning.federation.state import FederationState
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.provenance.chain import Chain, ChainError
from fl_lightning.provenance.digests import canonical, json_digest, state_digest
from fl_lightning.provenance.salts import read_secret
from fl_lightning.runs.build import (
    RunComponents,
    build_components,
    fingerprint_components,
    make_local_clients,
)
from fl_lightning.storage.offload import MAX_IN_MEMORY, OffloadFolder
from fl_lightning.storage.run_layout import LEDGER, LEDGER_SECRET, NETWORK
from fl_lightning.trainer import FederatedTrainer
from fl_lightning.training.worker_processes import WorkerProcesses

log = logging.getLogger(__name__)

COMMITTED = ("records", "update", "own", "client_starts")
"""Keys of commitments, which need the run's secret."""
CLIENT_KEYS = ("records", "update", "own", "examples", "weight", "scaled", "rejected")
"""Keys of a client's entry, those first whose difference explains the others."""
ROUND_KEYS = ("no_reply", "dropped", "departments", "clusters", "states")


@dataclass(frozen=True)
class Replayed:
    """What was computed again.

    Attributes:
        rounds: that equal their lines, ascending: those that were asked for, and those on the way to them.
        has_secret: whether updates and records were compared too.
    """

    rounds: list[int]
    has_secret: bool


def replay(run_folder: Path, config: RunConfig, chain: Chain, rounds: Collection[int]) -> Replayed:
    """Compute rounds again, each from the checkpoint before it, and compare them with the ledger.

    Where that checkpoint is not kept, the rounds since an earlier one, or since the start, are computed as well.

    Args:
        run_folder: of the run.
        config: of the run, with the places of base and data on this machine.
        chain: of the run; it holds.
        rounds: to compare.

    Raises:
        InputError: if there is no such round, or it cannot be computed here.
        ChainError: naming the first round that is not as its line says, and what differs first.
        RunError: if a round gets no valid update.
    """
    last = max(chain.rounds, default=0)
    if wrong := [number for number in rounds if number not in chain.rounds]:
        raise InputError(f"--replay: expected rounds from 1 to {last}, got {wrong[0]}")
    if (run_folder / NETWORK).exists():
        raise InputError(
            f"--replay: {run_folder} is a run between machines, whose records are at the sites; its rounds cannot be "
            "computed here"
        )
    config = replace(config, output=tempfile.gettempdir(), ledger=LedgerConfig())
    components = build_components(config, run_folder)
    fingerprint = fingerprint_components(config, components)
    _check_start(run_folder, chain, fingerprint, components)
    has_secret = (run_folder / LEDGER_SECRET).exists()
    secret = read_secret(run_folder) if has_secret else "00" * 32
    done: list[int] = []
    state: FederationState | None = None
    for number in sorted(set(rounds)):
        if number in done:
            continue
        state = _state_before(run_folder, config, components, number, state)
        for current in range(0 if state is None else state.round_num, number):
            state, line = _next_round(config, components, fingerprint, secret, state, current + 1)
            if problem := first_difference(chain.rounds[current + 1], line, has_secret=has_secret):
                raise ChainError(
                    f"{run_folder / LEDGER}:{current + 2}: round {current + 1}: {problem}. {_versions(chain)}"
                )
            log.info("round %d is as in the ledger", current + 1)
            done.append(current + 1)
    return Replayed(done, has_secret)


def first_difference(expected: Mapping[str, Any], line: Mapping[str, Any], *, has_secret: bool) -> str | None:
    """The first thing in which a round's line differs from the one that was computed again; None if nothing does.

    Args:
        expected: the line in the ledger.
        line: of the replayed round.
        has_secret: whether commitments are compared.

    Example:
        >>> lines = [{"clients": {"hr/a": {"weight": w}}, "states": {}} for w in (0.5, 1)]
        >>> first_difference(*lines, has_secret=False)
        'hr/a: weight: expected 0.5, got 1'
    """
    before, after = (_comparable(values, has_secret) for values in (expected, line))
    clients = [values.pop("clients", {}) for values in (before, after)]
    for client_id in sorted({*clients[0], *clients[1]}):
        if client_id not in clients[0] or client_id not in clients[1]:
            return f"{client_id}: took part {'here' if client_id in clients[1] else 'in the ledger'} only"
    for key in CLIENT_KEYS:
        for client_id in sorted(clients[0]):
            values = [entries[client_id].get(key) for entries in clients]
            if values[0] != values[1]:
                return f"{client_id}: {key}: expected {_short(values[0])}, got {_short(values[1])}"
    for key in ROUND_KEYS:
        if different := _first_path(before.get(key), after.get(key), key):
            return different
    return None


def _comparable(line: Mapping[str, Any], has_secret: bool) -> dict[str, Any]:
    """A line as JSON values, with commitments only if these can be made."""
    values: dict[str, Any] = json.loads(canonical(line))
    if not has_secret:
        for entry in (*values.get("clients", {}).values(), *values.get("departments", {}).values()):
            for key in COMMITTED:
                entry.pop(key, None)
    return values


def _first_path(expected: Any, actual: Any, path: str) -> str | None:
    """The first place in which two JSON values differ."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        names = sorted({*expected, *actual})
        problems = (_first_path(expected.get(name), actual.get(name), f"{path}: {name}") for name in names)
        return next((problem for problem in problems if problem), None)
    return None if expected == actual else f"{path}: expected {_short(expected)}, got {_short(actual)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _check_start(run_folder: Path, chain: Chain, fingerprint: Mapping[str, Any], components: RunComponents) -> None:
    """Check that base, config and the common start are those of the ledger's first line."""
    start = chain.start
    if start["base"] != fingerprint["base"]:
        raise InputError(
            f"model.name_or_path: expected the base of the run (SHA-256 {start['base'][:12]}…), got another one "
            f"({fingerprint['base'][:12]}…); --model takes another place"
        )
    if start["config"] != json_digest(fingerprint["config"]):
        here = version("fl-lightning")
        if start["versions"].get("fl-lightning") == here:
            raise ChainError(f"{run_folder / LEDGER}:1: config: config.yaml is not the config with which the run began")
        log.warning("this is version %s of fl-lightning; the config may mean something else in the run's", here)
    expected = set(start["states"]["departments"].values())
    if expected != {state_digest(collect_lora_state(components.module.model))}:
        raise ChainError(f"{run_folder / LEDGER}:1: states: the start is another one here. {_versions(chain)}")


def _state_before(
    run_folder: Path, config: RunConfig, components: RunComponents, number: int, replayed: FederationState | None
) -> FederationState | None:
    """The latest state before a round: of a checkpoint, or the one that was replayed; None is the start."""
    folders = {done: folder for done, folder in checkpoints(run_folder).items() if done < number}
    if replayed is not None and replayed.round_num >= max(folders, default=0):
        return replayed
    if folders:
        keep = OffloadFolder(None).store if len(components.data) > MAX_IN_MEMORY else None
        return load_checkpoint(folders[max(folders)], keep)[0]
    if config.federation.guard.name == "dp" and config.federation.privacy.noise_seed is None:
        raise InputError(
            f"--replay: expected a checkpoint before round {number}, which has the secret key of the noise, got none; "
            "retention.checkpoints: 0 keeps all"
        )
    return None


def _next_round(
    config: RunConfig,
    components: RunComponents,
    fingerprint: Mapping[str, Any],
    secret: str,
    state: FederationState | None,
    number: int,
) -> tuple[FederationState, dict[str, Any]]:
    """(the state after a round, its line)."""
    lines: list[dict[str, Any]] = []
    clients = make_local_clients(components, config)
    if isinstance(clients, WorkerProcesses):
        raise InputError(
            "--replay: expected fabric.devices: 1, got several; their last bits cannot be had in one process"
        )
    trainer = FederatedTrainer(
        fabric=components.fabric,
        callbacks=[FederatedRound(), RunLedger(fingerprint, secret=secret, on_line=lines.append)],
        federation=replace(config.federation, rounds=number),
        training=config.training,
        lora=config.lora,
        personal=config.personal,
        evaluation=config.evaluation,
        seed=config.seed,
    )
    state = trainer.fit(
        components.module, components.data, clients=clients, resume_from=state, places=components.places
    )
    return state, lines[-1]


def _versions(chain: Chain) -> str:
    """What may explain a difference that is nobody's fault."""
    lines = [chain.start, *chain.rounds.values()]
    versions = [line["versions"] for line in lines if "versions" in line][-1]
    here = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "peft")}}
    other = [
        f"{name} {versions.get(name)} (here {value})" for name, value in here.items() if versions.get(name) != value
    ]
    reason = f"The run had {', '.join(other)}. " if other else ""
    return f"{reason}Another processor, number of threads or version may give other last bits"
