"""Take clients, departments or records out of a run: a new run, byte for byte the one that never had them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fl_lightning import launch, signals
from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import to_yaml
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint
from fl_lightning.federation.fingerprint import check_fingerprint
from fl_lightning.provenance.certificate import write_certificate
from fl_lightning.provenance.chain import Chain, ChainError, read_ledger
from fl_lightning.provenance.chain_check import check_chain
from fl_lightning.runs.build import build_components, fingerprint_components, load_run_config, make_local_clients
from fl_lightning.runs.canaries import write_canaries
from fl_lightning.runs.fit import open_run, run_fit
from fl_lightning.runs.forgetting.plan import ForgetPlan, clients_known, make_plan
from fl_lightning.runs.forgetting.request import ForgetRequest, Removal, look_up
from fl_lightning.runs.forgetting.start import Evaluator, prepare
from fl_lightning.storage.files import read_json, write_json, write_text
from fl_lightning.storage.forgotten import check_not_forgotten, mark_forgotten
from fl_lightning.storage.run_folder import RUN_PREFIX, create_numbered_folder, locked, numbered_folders
from fl_lightning.storage.run_layout import CONFIG, EVALUATION, FORGETTING, FORGOTTEN, LEDGER, NETWORK, UPDATES
from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forgotten:
    """What `forget` has made.

    Attributes:
        run_folder: of the new run.
        certificate: its folder; None if the run before has no chain.
        plan: what was computed again.
    """

    run_folder: Path
    certificate: Path | None
    plan: ForgetPlan


def plan_forget(
    run_folder: Path, request: ForgetRequest, *, from_start: bool = False
) -> tuple[RunConfig, Removal, ForgetPlan]:
    """(config of the run before, what is taken out, what is computed again); nothing is written.

    Raises:
        InputError: if something that is named is not in the run, or nothing can be taken out of this run.
    """
    check_not_forgotten(run_folder)
    config = load_run_config(run_folder)
    if (run_folder / NETWORK).exists():
        raise InputError(
            f"{run_folder}: expected a run of fit, got one between machines, whose records are at their sites: the "
            "sites must fit again. Start the server anew with data.exclude: server --config "
            f"{run_folder / CONFIG} --data.exclude '[hr/client_1]'; sites that are left out need not join"
        )
    removal = look_up(config, request, clients_known(run_folder))
    removal = replace(removal, config=replace(removal.config, output=str(run_folder.parent)))
    _check_finished(run_folder, config)
    return config, removal, make_plan(run_folder, config, removal, from_start=from_start)


def forget(
    run_folder: Path, request: ForgetRequest, *, from_start: bool = False, console: Console | None = None
) -> Forgotten | None:
    """Make the new run, its certificate, and mark the run before; the same call continues after an interruption.

    Args:
        run_folder: of the run before, finished.
        request: what is taken out.
        from_start: compute all rounds again, even if a later state could be taken.
        console: for progress bars; None is standard error.

    Returns:
        None on all processes but the first.

    Raises:
        InputError: if it cannot be done; nothing is written then.
        RunError: if the new run cannot go on.
    """
    _, removal, plan = plan_forget(run_folder, request, from_start=from_start)
    config = removal.config
    if not launch.is_first():
        components = build_components(config)
        trainer = FederatedTrainer(fabric=components.fabric, training=config.training)
        trainer.fit(components.module, components.data, clients=make_local_clients(components, config))
        return None
    with locked(run_folder):
        components = build_components(config)
        clients = make_local_clients(components, config)
        fingerprint = fingerprint_components(config, components)
        _check_same(run_folder, removal, fingerprint)
        chain = _chain_of(run_folder) if config.ledger.enabled else None
        if chain is None and config.ledger.enabled:
            plan = replace(plan, start_round=0, reason="the ledger of the run before is not right")
        folder, plan = _new_folder(run_folder, removal, plan)
        with locked(folder):
            if not _is_finished(folder, config):
                try:
                    evaluator = Evaluator(config, components, clients)
                    prepare(folder, run_folder, plan.start_round, removal, fingerprint, evaluator, chain)
                    with open_run(config, components, fingerprint, folder) as start:
                        write_canaries(folder, components.canaries)
                        archive = run_folder / UPDATES
                        reuse = archive if archive.is_dir() else None
                        run_fit(start, config, components, clients, console=console, reuse=reuse)
                except signals.Stopped as stop:
                    stop.note = "the same forget command goes on there"
                    raise
            certificate = None
            if chain is not None:
                key = None if config.ledger.sign_key is None else Path(config.ledger.sign_key)
                certificate = write_certificate(
                    folder, run_folder, taken_out=removal.taken_out, first_round=plan.first_round, sign_key=key
                )
        values = {"new_run": folder.name, "taken_out": removal.taken_out, "first_round": plan.first_round}
        mark_forgotten(run_folder, {**values, "purged": False})
    return Forgotten(folder, certificate, plan)


def _check_finished(run_folder: Path, config: RunConfig) -> None:
    done, rounds = max(checkpoints(run_folder), default=0), config.federation.rounds
    if not _is_finished(run_folder, config):
        raise InputError(
            f"{run_folder}: expected a finished run, got {done} of {rounds} rounds; continue it with fl-lightning fit "
            f"--resume {run_folder}, or start a new run with data.exclude"
        )


def _is_finished(run_folder: Path, config: RunConfig) -> bool:
    """Whether a run has its last round, and the last line of its ledger if it keeps one."""
    folders = checkpoints(run_folder)
    if not (run_folder / EVALUATION).is_file() or (folders and max(folders) < config.federation.rounds):
        return False
    if not config.ledger.enabled or not (run_folder / LEDGER).is_file():
        return bool(folders)
    return b'"kind":"end"' in read_ledger(run_folder / LEDGER).rstrip(b"\n").rpartition(b"\n")[2]


def _check_same(run_folder: Path, removal: Removal, fingerprint: Mapping[str, Any]) -> None:
    """Check that config, base and all other records are those of the run before.

    Raises:
        InputError: naming the first difference.
    """
    folders = checkpoints(run_folder)
    if not folders:
        log.warning("%s has no checkpoint: whether data and base are those of the run is not checked", run_folder)
        return
    _, extra = load_checkpoint(folders[max(folders)])
    saved = extra.identity
    if not saved:
        return
    others = {c: digest for c, digest in saved["clients"].items() if c not in removal.gone | removal.changed}
    clients = {**others, **{c: digest for c, digest in fingerprint["clients"].items() if c in removal.changed}}
    if "client_ids" in fingerprint:  # the evaluated clients may be drawn anew
        clients = {c: clients.get(c, digest) for c, digest in fingerprint["clients"].items()}
    expected = {**saved, "clients": clients, "client_ids": fingerprint.get("client_ids")}
    changed = {"data.exclude", "data.exclude_records", "federation.hierarchy.groups", "lora.profiles"}
    expected["config"] = {key: value for key, value in saved["config"].items() if key not in changed}
    check_fingerprint(expected, fingerprint)


def _chain_of(run_folder: Path) -> Chain | None:
    """The chain of a run; None, and a warning, if it is not right: there is no certificate then."""
    try:
        return check_chain(read_ledger(run_folder / LEDGER), str(run_folder / LEDGER))
    except (ChainError, InputError) as error:
        log.warning("no certificate can be written: %s", error)
        return None


def _new_folder(run_folder: Path, removal: Removal, plan: ForgetPlan) -> tuple[Path, ForgetPlan]:
    """A new run folder beside the run before, or the one in which an interrupted call has begun, with its plan."""
    data = removal.config.data
    values = {"run": run_folder.name, "exclude": data.exclude, "exclude_records": data.exclude_records}
    for folder in reversed(numbered_folders(run_folder.parent, RUN_PREFIX).values()):
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError):
            begun = read_json(folder / FORGETTING) if (folder / FORGETTING).is_file() else {}
            start = int(begun["start_round"])
            if begun == {**values, "start_round": start} and not os.path.exists(folder / FORGOTTEN):
                log.info("continuing %s", folder)
                return folder, replace(plan, start_round=start)

    def fill(folder: Path) -> None:
        write_text(folder / CONFIG, to_yaml(removal.config))
        write_json(folder / FORGETTING, {**values, "start_round": plan.start_round})

    return create_numbered_folder(run_folder.parent, RUN_PREFIX, fill), plan
