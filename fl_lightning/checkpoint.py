"""A federation's state on disk: JSON and safetensors files in a folder of their own; nothing is unpickled.

``state.safetensors`` holds the tensors that few share (the start, the departments, the starts of client clusters) under
keys ``kind|number|parameter name``; ``state.json`` says whose number is whose. What each client has for itself is in
``personal/<department>/<client>.safetensors``, written one at a time. ``manifest.json`` has the
size and SHA-256 of every file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fl_lightning.errors import InputError
from fl_lightning.federation import FederationState
from fl_lightning.files import atomic_folder, check_manifest, check_name, read_json, write_json, write_manifest
from fl_lightning.state import LoraState
from fl_lightning.tensor_files import read_state, write_state

log = logging.getLogger(__name__)

SHARED = ("departments", "client_starts")


def save_checkpoint(folder: Path, state: FederationState, extra: dict[str, Any]) -> None:
    """Write state and `extra` (JSON values) to a folder, whole or not at all."""
    tensors: LoraState = {f"initial||{name}": tensor for name, tensor in state.initial.items()}
    owners: dict[str, dict[str, int]] = {}
    for kind in SHARED:
        numbers: dict[int, int] = {}  # clients of one cluster share their start, which is written once
        owners[kind] = {}
        for owner, owned in getattr(state, kind).items():
            number = numbers.setdefault(id(owned), len(numbers))
            owners[kind][owner] = number
            for name, tensor in owned.items():
                tensors.setdefault(f"{kind}|{number}|{name}", tensor)
    facts = {
        "round": state.round_num,
        "examples": state.examples,
        "cluster_assignments": state.cluster_assignments,
        "owners": owners,
        "personal": list(state.personal),
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
        keep: takes in what each client has for itself, such as `Spill.keep`; memory where None.

    Raises:
        InputError: if the folder does not hold a whole checkpoint.
    """
    check_manifest(folder)
    facts = read_json(folder / "state.json")
    try:
        tensors = read_state(folder / "state.safetensors")
        initial: LoraState = {}
        kinds: dict[str, dict[str, LoraState]] = {kind: {} for kind in SHARED}
        for key in sorted(tensors):
            kind, number, name = key.split("|", 2)
            target = initial if kind == "initial" else kinds[kind].setdefault(number, {})
            target[name] = tensors[key]
        personal: dict[str, Mapping[str, torch.Tensor]] = {}
        for client_id in facts["personal"]:
            department, client = client_id.split("/")
            path = folder / "personal" / check_name(department) / f"{check_name(client)}.safetensors"
            own = read_state(path)
            personal[client_id] = own if keep is None else keep(own)
        state = FederationState(
            round_num=facts["round"],
            initial=initial,
            departments={d: kinds["departments"][str(n)] for d, n in facts["owners"]["departments"].items()},
            client_starts={c: kinds["client_starts"][str(n)] for c, n in facts["owners"]["client_starts"].items()},
            personal=personal,
            examples=facts["examples"],
            cluster_assignments=facts["cluster_assignments"],
        )
        return state, facts["extra"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: not a whole checkpoint ({type(error).__name__}: {error})") from error


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
            return load_checkpoint(folder, keep)
        except InputError as error:
            log.warning("passing over a checkpoint: %s", error)
            problems.append(str(error))
    if problems:
        raise InputError(f"{run_folder}: none of its {len(found)} checkpoints is whole; the newest: {problems[0]}")
    return None


def checkpoints(run_folder: Path) -> dict[int, Path]:
    """{round: folder} of the checkpoints of a run, ascending."""
    found = {
        int(match[1]): path
        for path in (run_folder / "checkpoints").glob("round_*")
        if (match := re.fullmatch(r"round_(\d+)", path.name))
    }
    return dict(sorted(found.items()))
