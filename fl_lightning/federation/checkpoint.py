"""A federation's state on disk: JSON and safetensors files in a folder of their own; nothing is unpickled.

``state.safetensors`` holds the tensors that few share (the start, the departments, the starts of client clusters) under
keys ``kind|number|parameter name``; ``state.json`` says whose number is whose. What each client has for itself is in
``personal/<department>/<client>.safetensors``, written one at a time. ``manifest.json`` has the
size and SHA-256 of every file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fl_lightning.clustering.tree import ROOT
from fl_lightning.errors import InputError
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.adapter_algebra import at_ranks_of
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.state import LoraState, problem_with
from fl_lightning.storage.files import atomic_folder, check_name, read_json, write_json
from fl_lightning.storage.manifest import MANIFEST, check_manifest, write_manifest
from fl_lightning.storage.tensors import read_state, write_state

log = logging.getLogger(__name__)

SHARED = ("departments", "client_starts", "server", "products", "groups")

ATTRIBUTES = {"server": "optimizer_states"}
"""Kinds whose attribute of the state has another name."""

LATER = ("server", "products", "groups")
"""Kinds that older checkpoints do not know."""


def save_checkpoint(folder: Path, state: FederationState, extra: dict[str, Any]) -> None:
    """Write state and `extra` (JSON values) to a folder, whole or not at all."""
    tensors: LoraState = {f"initial||{name}": tensor for name, tensor in state.initial.items()}
    owners: dict[str, dict[str, int]] = {}
    for kind in SHARED:
        numbers: dict[int, int] = {}  # clients of one cluster share their start, which is written once
        owners[kind] = {}
        for owner, owned in getattr(state, ATTRIBUTES.get(kind, kind)).items():
            number = numbers.setdefault(id(owned), len(numbers))
            owners[kind][owner] = number
            for name, tensor in owned.items():
                tensors.setdefault(f"{kind}|{number}|{name}", tensor)
    facts = {
        "round": state.round_num,
        "examples": state.examples,
        "cluster_assignments": state.cluster_assignments,
        "owners": owners,
        **({"grouping": state.clustering_memory} if state.clustering_memory else {}),
        "personal": list(state.personal),
        **({"privacy": asdict(state.privacy)} if state.privacy is not None else {}),
        "extra": extra,
    }
    with atomic_folder(folder) as temporary:
        write_state(temporary / "state.safetensors", tensors)
        for client_id, own in state.personal.items():
            write_state(temporary / "personal" / f"{client_id}.safetensors", own)
        write_json(temporary / "state.json", facts)
        write_manifest(temporary)


def load_checkpoint(
    folder: Path, keep: Callable[[LoraState], Mapping[str, torch.Tensor]] | None = None
) -> tuple[FederationState, dict[str, Any]]:
    """(state, extra) of a checkpoint folder.

    Args:
        folder: as `save_checkpoint` writes it.
        keep: takes in what each client has for itself, such as `OffloadFolder.store`; memory where None.

    Raises:
        InputError: if the folder does not hold a whole checkpoint.
    """
    named = check_manifest(folder)
    try:
        facts = _facts(folder / "state.json")
        files = ["state.json", "state.safetensors", *(f"personal/{c}.safetensors" for c in facts["personal"])]
        if unnamed := [name for name in files if name not in named]:
            raise ValueError(f"{MANIFEST} does not name {unnamed[0]}")
        tensors = read_state(folder / "state.safetensors")
        initial: LoraState = {}
        kinds: dict[str, dict[str, LoraState]] = {kind: {} for kind in SHARED}
        for key in sorted(tensors):
            kind, number, name = key.split("|", 2)
            target = initial if kind == "initial" else kinds[kind].setdefault(number, {})
            target[name] = tensors[key]
        for number, department in kinds["departments"].items():
            _check_fit(f"departments|{number}", department, initial)
        for number, group in kinds["groups"].items():
            _check_fit(f"groups|{number}", group, initial)
        for number, start in kinds["client_starts"].items():
            _check_fit(f"client_starts|{number}", start, {name: initial[name] for name in start})
        for number, memory in kinds["server"].items():
            _check_fit(f"server|{number}", memory, {name: initial[name.split("/", 1)[1]] for name in memory})
        for number, product in kinds["products"].items():
            _check_fit(f"products|{number}", product, at_ranks_of(product, initial))
        personal: dict[str, Mapping[str, torch.Tensor]] = {}
        for client_id in facts["personal"]:
            department, client = client_id.split("/")
            path = folder / "personal" / check_name(department) / f"{check_name(client)}.safetensors"
            own = read_state(path)
            _check_fit(client_id, own, {name: initial[name] for name in own})
            personal[client_id] = own if keep is None else keep(own)
        state = FederationState(
            round_num=facts["round"],
            initial=initial,
            departments={d: kinds["departments"][str(n)] for d, n in facts["owners"]["departments"].items()},
            client_starts={c: kinds["client_starts"][str(n)] for c, n in facts["owners"]["client_starts"].items()},
            products={d: kinds["products"][str(n)] for d, n in facts["owners"].get("products", {}).items()},
            optimizer_states={d: kinds["server"][str(n)] for d, n in facts["owners"].get("server", {}).items()},
            personal=personal,
            groups={g: kinds["groups"][str(n)] for g, n in facts["owners"].get("groups", {}).items()},
            clustering_memory=_by_group(facts.get("grouping", {})),
            privacy=Ledger(**facts["privacy"]) if "privacy" in facts else None,
            examples=facts["examples"],
            cluster_assignments=facts["cluster_assignments"],
        )
        return state, facts["extra"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: not a whole checkpoint ({type(error).__name__}: {error})") from error


def _facts(path: Path) -> dict[str, Any]:
    """What stands in ``state.json``, its form checked.

    Raises:
        InputError: naming the first entry of another form.
    """
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise InputError(f"{path}: got {type(facts).__name__}, wanted an object")
    owners = facts["owners"] if isinstance(facts.get("owners"), dict) else {}
    personal = facts.get("personal")
    forms = {
        "round": _is_count(facts.get("round")),
        "examples": _are_counts(facts.get("examples")) and all(facts["examples"].values()),
        "cluster_assignments": _are_counts(facts.get("cluster_assignments")),
        "personal": isinstance(personal, list) and all(isinstance(client_id, str) for client_id in personal),
        "grouping": isinstance(facts.get("grouping", {}), dict),
        "extra": isinstance(facts.get("extra"), dict),
        "privacy": "privacy" not in facts or _is_ledger(facts["privacy"]),
        **{f"owners.{kind}": _are_counts(owners.get(kind, {} if kind in LATER else None)) for kind in SHARED},
    }
    if bad := [name for name, ok in forms.items() if not ok]:
        raise InputError(f"{path}: {bad[0]} is missing or of another form, wanted what `save_checkpoint` writes")
    of_clients = [owners[kind] for kind in ("client_starts", "server", "products") if kind in owners]
    for clients in (facts["examples"], personal or (), *of_clients):
        _check_departments(path, clients, owners["departments"])
    _check_departments(path, facts["cluster_assignments"], {**owners["departments"], **owners.get("groups", {})})
    return facts


def _by_group(memory: dict[str, Any]) -> dict[str, Any]:
    """What clusters go by, by group; checkpoints from before there were groups keep only the whole federation's."""
    return {ROOT: memory} if memory.keys() & {"relation", "clients", "hysteresis"} else memory


def _check_extra(folder: Path, state: FederationState, extra: Mapping[str, Any]) -> None:
    """Check the form of what a run keeps beside its state, as far as it is there.

    Raises:
        InputError: naming the first entry of another form.
    """
    history, callbacks = extra.get("history", []), extra.get("callbacks", {})
    identity = extra.get("identity", {"config": {}, "clients": {}, "base": ""})
    forms = {
        "history": isinstance(history, list) and all(map(_is_row, history)),
        "callbacks": isinstance(callbacks, dict) and all(isinstance(values, dict) for values in callbacks.values()),
        "identity": _is_identity(identity),
    }
    if bad := [name for name, ok in forms.items() if not ok]:
        raise InputError(f"{folder / 'state.json'}: extra.{bad[0]} is of another form, wanted what a run writes")
    _check_departments(folder / "state.json", identity["clients"], state.departments)


def _check_departments(path: Path, clients: Iterable[str], departments: Collection[str]) -> None:
    if homeless := {client_id.split("/")[0] for client_id in clients} - set(departments):
        raise InputError(f"{path}: departments: {min(homeless)} has clients and no adapter, wanted both")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_ledger(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"key", "clips", "rounds"} or not isinstance(value["key"], str):
        return False
    clips = value["clips"].values() if isinstance(value["clips"], dict) else [None]
    return all(isinstance(clip, float) and clip > 0 for clip in clips) and _are_counts(value["rounds"])


def _is_row(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and isinstance(value[1], dict)


def _is_identity(value: object) -> bool:
    forms = {"config": dict, "clients": dict, "base": str}
    return isinstance(value, dict) and all(isinstance(value.get(name), form) for name, form in forms.items())


def _check_fit(what: str, state: LoraState, initial: LoraState) -> None:
    if problem := problem_with(state, initial):
        raise ValueError(f"{what}: {problem}")


def newest_checkpoint(
    run_folder: Path, keep: Callable[[LoraState], Mapping[str, torch.Tensor]] | None = None
) -> tuple[FederationState, dict[str, Any]] | None:
    """(state, extra) of the newest whole checkpoint of a run; None where the run has no checkpoint at all.

    Args:
        run_folder: the run's folder.
        keep: as for `load_checkpoint`.

    Raises:
        InputError: if there are checkpoints and none is whole.
    """
    found = checkpoints(run_folder)
    problems = []
    for folder in reversed(found.values()):
        try:
            loaded = load_checkpoint(folder, keep)
            _check_extra(folder, *loaded)
        except InputError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("passing over a checkpoint: %s", problem)
        return loaded
    if problems:
        raise InputError(
            f"{run_folder}: none of its {len(found)} checkpoints is whole; the newest: {problems[0]}; "
            "put a whole one there, or start a new run"
        )
    return None


def checkpoints(run_folder: Path) -> dict[int, Path]:
    """{round: folder} of the checkpoints of a run, ascending."""
    found = {
        int(match[1]): path
        for path in (run_folder / "checkpoints").glob("round_*")
        if (match := re.fullmatch(r"round_(\d+)", path.name))
    }
    return dict(sorted(found.items()))
