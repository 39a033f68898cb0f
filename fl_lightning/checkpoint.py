"""A federation's state on disk: one safetensors file and one JSON file in a folder of their own.

Nothing is unpickled. Tensor keys are ``kind|owner|parameter name``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fl_lightning.errors import InputError
from fl_lightning.federation import FederationState
from fl_lightning.files import atomic_folder, read_json, write_json
from fl_lightning.state import LoraState

KINDS = ("departments", "client_starts", "personal")


def save_checkpoint(folder: Path, state: FederationState, extra: dict[str, Any]) -> None:
    """Write state and `extra` (JSON values) to a folder, whole or not at all."""
    tensors: LoraState = {f"initial||{name}": tensor.contiguous() for name, tensor in state.initial.items()}
    for kind in KINDS:
        for owner, owned in getattr(state, kind).items():
            tensors.update({f"{kind}|{owner}|{name}": tensor.contiguous() for name, tensor in owned.items()})
    facts = {
        "round": state.round_num,
        "examples": state.examples,
        "cluster_assignments": state.cluster_assignments,
        "extra": extra,
    }
    with atomic_folder(folder) as temporary:
        # Clients of one cluster share their start's tensors; safetensors wants each key to own its memory.
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, temporary / "state.safetensors")
        write_json(temporary / "state.json", facts)


def load_checkpoint(folder: Path) -> tuple[FederationState, dict[str, Any]]:
    """(state, extra) of a checkpoint folder.

    Raises:
        InputError: if the folder does not hold a whole checkpoint.
    """
    facts = read_json(folder / "state.json")
    try:
        tensors = load_file(folder / "state.safetensors")
        initial: LoraState = {}
        kinds: dict[str, dict[str, LoraState]] = {kind: {} for kind in KINDS}
        for key in sorted(tensors):
            kind, owner, name = key.split("|", 2)
            target = initial if kind == "initial" else kinds[kind].setdefault(owner, {})
            target[name] = tensors[key]
        state = FederationState(
            round_num=facts["round"],
            initial=initial,
            examples=facts["examples"],
            cluster_assignments=facts["cluster_assignments"],
            **kinds,
        )
        return state, facts["extra"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: not a whole checkpoint ({type(error).__name__}: {error})") from error


def checkpoints(run_folder: Path) -> dict[int, Path]:
    """{round: folder} of the checkpoints of a run, ascending."""
    found = {
        int(match[1]): path
        for path in (run_folder / "checkpoints").glob("round_*")
        if (match := re.fullmatch(r"round_(\d+)", path.name))
    }
    return dict(sorted(found.items()))
