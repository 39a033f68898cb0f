"""A federation's state on disk: a folder of JSON and safetensors files; nothing is unpickled.

| file | holds |
|---|---|
| ``state.safetensors`` | the initial state, departments, groups, cluster starts: ``kind|number|parameter name`` |
| ``state.json`` | whose state has which number, and all that is not a tensor, see `checkpoint_schema` |
| ``personal/<department>/<client>.safetensors`` | what one client keeps for itself, written one at a time |
| ``own/<department>/<client>.safetensors`` | a client's own adapter, under ``personal.own: during`` |
| ``best/<department, group or client>.safetensors`` | its adapter of the best round, under early stopping |
| ``manifest.json`` | size and SHA-256 of every file |

With buffered rounds the departments' states from which clients in flight have started are there too (kind ``past``).
Logged rows are beside the folders, in ``history.jsonl``. Under differential privacy ``state.json`` holds the key of the
noise: only the owner may read it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint_schema import OWNER_KINDS, CheckpointExtra, CheckpointHeader
from fl_lightning.federation.history import HistoryMark, read_history
from fl_lightning.federation.state import BestRound, FederationState
from fl_lightning.linalg.adapter_algebra import resize_like
from fl_lightning.linalg.own_mixture import own_layout
from fl_lightning.state import LoraState, problem_with
from fl_lightning.storage.files import atomic_folder, check_name, write_json
from fl_lightning.storage.manifest import MANIFEST, FileDigest, check_manifest, write_manifest
from fl_lightning.storage.offload import OffloadedState
from fl_lightning.storage.run_layout import CHECKPOINT_FACTS, CHECKPOINT_TENSORS, CHECKPOINTS, HISTORY, round_folders
from fl_lightning.storage.tensors import read_state, write_state

log = logging.getLogger(__name__)

Keep = Callable[[LoraState], Mapping[str, torch.Tensor]]
"""Stores a client's state, such as `OffloadFolder.store`."""


def save_checkpoint(
    folder: Path, state: FederationState, extra: CheckpointExtra | None = None, mark: HistoryMark | None = None
) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        folder: of the checkpoint; its parent holds ``history.jsonl``.
        state: of the federation.
        extra: what the run keeps besides it. Without a `mark` its rows are written into the checkpoint; its records
            never are.
        mark: where the rows up to this round end in ``history.jsonl``.
    """
    extra = extra or CheckpointExtra()
    tensors: LoraState = {f"initial||{name}": tensor for name, tensor in state.initial.items()}
    owners: dict[str, dict[str, int]] = {}
    for kind, states in _states_by_kind(state).items():
        numbers: dict[int, int] = {}  # clients of one cluster share their start, which is written once
        owners[kind] = {}
        for owner, owned in states.items():
            number = numbers.setdefault(id(owned), len(numbers))
            owners[kind][owner] = number
            for name, tensor in owned.items():
                tensors.setdefault(f"{kind}|{number}|{name}", tensor)
    header = CheckpointHeader(
        round=state.round_num,
        examples=state.examples,
        cluster_assignments=state.cluster_assignments,
        owners=owners,
        personal=list(state.personal),
        own=list(state.own_adapters),
        mixtures=state.mixtures,
        best={owner: {"round": best.round_num, "loss": best.loss} for owner, best in state.best.items()},
        callbacks=extra.callbacks,
        history=extra.history if mark is None else mark,
        identity=extra.identity,
        grouping=state.clustering_memory,
        privacy=state.privacy,
    )
    with atomic_folder(folder) as temporary:
        write_state(temporary / CHECKPOINT_TENSORS, tensors)
        best = {owner: best.adapter for owner, best in state.best.items()}
        digests: dict[str, FileDigest] = {}
        for kind, by_owner in (("personal", state.personal), ("own", state.own_adapters), ("best", best)):
            for owner, adapter in by_owner.items():
                name = f"{kind}/{owner}.safetensors"
                if isinstance(adapter, OffloadedState):  # most clients' states are as in the checkpoint before
                    digests[name] = adapter.write_to(temporary / name)
                else:
                    write_state(temporary / name, adapter)
        write_json(temporary / CHECKPOINT_FACTS, header.to_json(), secret=state.privacy is not None)
        write_manifest(temporary, digests)


def load_checkpoint(folder: Path, keep: Keep | None = None) -> tuple[FederationState, CheckpointExtra]:
    """Read a checkpoint.

    Args:
        folder: as `save_checkpoint` wrote it.
        keep: stores the clients' personal factors and own adapters; None keeps them in memory.

    Raises:
        InputError: if the folder does not hold a complete checkpoint.
    """
    listed = check_manifest(folder)
    try:
        header = CheckpointHeader.read(folder / CHECKPOINT_FACTS)
        owners = {"personal": header.personal, "own": header.own, "best": header.best}
        files = [CHECKPOINT_FACTS, CHECKPOINT_TENSORS]
        files += [f"{kind}/{owner}.safetensors" for kind, names in owners.items() for owner in names]
        if unlisted := [name for name in files if name not in listed]:
            raise ValueError(f"{MANIFEST} does not list {unlisted[0]}")
        initial, kinds = _read_tensors(folder / CHECKPOINT_TENSORS)
        owned = {
            kind: {owner: kinds[kind][str(number)] for owner, number in header.owners[kind].items()}
            for kind in OWNER_KINDS
        }
        state = FederationState(
            round_num=header.round,
            initial=initial,
            departments=owned["departments"],
            client_starts=owned["client_starts"],
            products=owned["products"],
            optimizer_states=owned["server"],
            personal=_read_clients(folder / "personal", header.personal, initial, keep),
            own_adapters=_read_clients(folder / "own", header.own, initial, keep, whole=True),
            groups=owned["groups"],
            past=owned["past"],
            best=_read_best(folder, header.best, initial, keep),
            clustering_memory=header.grouping,
            privacy=header.privacy,
            examples=header.examples,
            cluster_assignments=header.cluster_assignments,
            mixtures=header.mixtures,
        )
        return state, _read_extra(folder, header)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: not a complete checkpoint ({type(error).__name__}: {error})") from error


def newest_checkpoint(run_folder: Path, keep: Keep | None = None) -> tuple[FederationState, CheckpointExtra] | None:
    """Read the newest complete checkpoint of a run.

    Args:
        run_folder: of the run.
        keep: as for `load_checkpoint`.

    Returns:
        As `load_checkpoint`; None if the run has no checkpoint at all.

    Raises:
        InputError: if there are checkpoints and none is complete.
    """
    folders = checkpoints(run_folder)
    problems = []
    for folder in reversed(folders.values()):
        try:
            loaded = load_checkpoint(folder, keep)
        except InputError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("skipping a checkpoint: %s", problem)
        return loaded
    if problems:
        raise InputError(
            f"{run_folder}: expected a complete checkpoint, got {len(folders)} incomplete ones; the newest: "
            f"{problems[0]}; restore one from a backup, or start a new run"
        )
    return None


def checkpoints(run_folder: Path) -> dict[int, Path]:
    """{round: folder} of a run's checkpoints, ascending."""
    return round_folders(run_folder / CHECKPOINTS)


def _states_by_kind(state: FederationState) -> dict[str, dict[str, LoraState]]:
    """The states in ``state.safetensors`` by the kind that its keys begin with."""
    return {
        "departments": state.departments,
        "client_starts": state.client_starts,
        "server": state.optimizer_states,
        "products": state.products,
        "groups": state.groups,
        "past": state.past,
    }


def _read_tensors(path: Path) -> tuple[LoraState, dict[str, dict[str, LoraState]]]:
    """The initial state, and {kind: {number: state}} of the others, whose layouts fit it.

    Raises:
        ValueError: naming the first state that does not fit.
    """
    tensors = read_state(path)
    initial: LoraState = {}
    kinds: dict[str, dict[str, LoraState]] = {kind: {} for kind in OWNER_KINDS}
    for key in sorted(tensors):
        kind, number, name = key.split("|", 2)
        target = initial if kind == "initial" else kinds[kind].setdefault(number, {})
        target[name] = tensors[key]
    for kind, states in kinds.items():
        for number, state in states.items():
            if kind == "client_starts":
                expected = {name: initial[name] for name in state}
            elif kind == "server":
                expected = {name: initial[name.split("/", 1)[1]] for name in state}
            elif kind == "products":
                expected = resize_like(state, initial)
            else:
                expected = initial
            _check_layout(f"{kind}|{number}", state, expected)
    return initial, kinds


def _read_clients(
    folder: Path, client_ids: list[str], initial: LoraState, keep: Keep | None, *, whole: bool = False
) -> dict[str, Mapping[str, torch.Tensor]]:
    """{client_id: its state} from the files of clients in a folder: a `whole` adapter, or a part of one.

    Raises:
        ValueError: if one does not fit the initial state.
    """
    states: dict[str, Mapping[str, torch.Tensor]] = {}
    for client_id in client_ids:
        department, client = client_id.split("/")
        state = read_state(folder / check_name(department) / f"{check_name(client)}.safetensors")
        _check_layout(client_id, state, own_layout(state, initial) if whole else {n: initial[n] for n in state})
        states[client_id] = state if keep is None else keep(state)
    return states


def _read_best(
    folder: Path, rounds: Mapping[str, Mapping[str, Any]], initial: LoraState, keep: Keep | None
) -> dict[str, BestRound]:
    """{owner: best round}, with adapters of any rank.

    Raises:
        ValueError: if one does not fit the initial state.
    """
    best: dict[str, BestRound] = {}
    for owner, values in rounds.items():
        name = "/".join(map(check_name, owner.split("/")))
        adapter = read_state(folder / "best" / f"{name}.safetensors")
        _check_layout(owner, adapter, resize_like(adapter, initial))
        stored = keep(adapter) if keep is not None and "/" in owner else adapter
        best[owner] = BestRound(values["round"], values["loss"], stored)
    return best


def _read_extra(folder: Path, header: CheckpointHeader) -> CheckpointExtra:
    """What the run kept, with the rows and records of ``history.jsonl``.

    Raises:
        OSError: if that file cannot be read.
        ValueError: if it has changed since the checkpoint.
    """
    if not isinstance(header.history, HistoryMark):
        return CheckpointExtra(header.callbacks, header.history, {}, header.identity)
    entries = read_history(folder.parent / HISTORY, header.history)
    records: dict[str, dict[int, object]] = {}
    for entry in entries:
        for key, record in entry.records.items():
            records.setdefault(key, {})[entry.round_num] = record
    return CheckpointExtra(header.callbacks, [row for entry in entries for row in entry.rows], records, header.identity)


def _check_layout(name: str, state: LoraState, expected: LoraState) -> None:
    if problem := problem_with(state, expected):
        raise ValueError(f"{name}: {problem}")
