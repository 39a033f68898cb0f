"""What a site keeps of a run for `personalize`: the adapters that the server sent at the end, and its own config.

<output>/sites/<department>.<client>/<run>/config.yaml
<output>/sites/<department>.<client>/<run>/received/{levels.safetensors,mates.safetensors,site.json}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import RunConfig, ScheduleConfig
from fl_lightning.config.parsing import to_yaml
from fl_lightning.errors import InputError
from fl_lightning.network.validation import problem_with_adapter
from fl_lightning.state import LoraState
from fl_lightning.storage.files import atomic_folder, check_name, natural_key, read_json, write_json, write_text
from fl_lightning.storage.run_layout import CONFIG, RECEIVED
from fl_lightning.storage.tensors import read_state, write_state

LEVELS = ("department", "cluster", "root")
"""Levels that a server may send."""
LEVELS_FILE, MATES_FILE = "levels.safetensors", "mates.safetensors"


def write_levels(
    folder: Path,
    config: RunConfig,
    client_id: str,
    levels: Mapping[str, Mapping[str, torch.Tensor]],
    rounds: int,
    mates: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Keep the levels of a run that has ended; the config last, by which the folder becomes a run's.

    Args:
        folder: of the site and the run.
        config: of the site.
        client_id: of the site.
        levels: {level: whole adapter}.
        rounds: of the run.
        mates: {client_id: own adapter} of other sites that lend it; None is of none.

    Raises:
        ValueError: if there is an unknown level, or not the department's.
    """
    if unknown := sorted(set(levels) - set(LEVELS)) or "department" not in levels:
        raise ValueError(f"levels: expected department and some of {', '.join(LEVELS[1:])}, got {str(unknown)[:80]}")
    with atomic_folder(folder / RECEIVED) as temporary:
        write_state(temporary / LEVELS_FILE, _joined(levels))
        if mates:
            write_state(temporary / MATES_FILE, _joined(mates))
        write_json(temporary / "site.json", {"client": client_id})
    # What is trained here from now on has nobody to be late for; of a buffered run, rounds are the department's steps.
    federation = replace(config.federation, rounds=rounds, schedule=ScheduleConfig())
    write_text(folder / CONFIG, to_yaml(replace(config, federation=federation)))


def read_client_id(folder: Path) -> str:
    """Whose folder it is.

    Raises:
        InputError: if the file is damaged.
    """
    content: Any = read_json(folder / RECEIVED / "site.json")
    client_id = content.get("client") if isinstance(content, dict) else None
    if not isinstance(client_id, str) or client_id.count("/") != 1:
        raise InputError(f"{folder / RECEIVED / 'site.json'}: expected the id of a client, got {str(content)[:80]}")
    return client_id


def read_levels(folder: Path, like: Mapping[str, torch.Tensor]) -> dict[str, LoraState]:
    """{level: adapter} as the server sent them.

    Args:
        folder: of the site and the run.
        like: an adapter of the site's model, of any rank.

    Raises:
        InputError: if the file is damaged, or an adapter does not fit the model.
    """
    levels = _read(folder / RECEIVED / LEVELS_FILE, like)
    return {level: levels[level] for level in LEVELS if level in levels}


def read_mates(folder: Path, like: Mapping[str, torch.Tensor]) -> dict[str, LoraState]:
    """{client_id: own adapter} of the sites that lend it, in the order of the clients in one process.

    Args:
        folder: of the site and the run.
        like: an adapter of the site's model, of any rank.

    Raises:
        InputError: if the file is damaged, or an adapter does not fit the model.
    """
    path = folder / RECEIVED / MATES_FILE
    mates = _read(path, like) if path.exists() else {}
    for name in mates:
        check_client_id(name)
    return {name: mates[name] for name in sorted(mates, key=_order)}


def check_client_id(client_id: object) -> str:
    """Return the id of a client that came from elsewhere, if it is safe for a folder.

    Raises:
        InputError: if it is not.
    """
    if not isinstance(client_id, str) or client_id.count("/") != 1:
        raise InputError(f"expected the id of a client, such as hr/client_0, got {str(client_id)[:80]!r}")
    for part in client_id.split("/"):
        check_name(part, "client")
    return client_id


def _order(client_id: str) -> tuple[str, list[tuple[int, int, str]]]:
    department, client = client_id.split("/", 1)
    return department, natural_key(client)


def _joined(adapters: Mapping[str, Mapping[str, torch.Tensor]]) -> LoraState:
    return {f"{owner}|{name}": tensor for owner, state in adapters.items() for name, tensor in state.items()}


def _read(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, LoraState]:
    adapters: dict[str, LoraState] = {}
    for key, tensor in read_state(path).items():
        owner, _, name = key.partition("|")
        adapters.setdefault(owner, {})[name] = tensor
    for owner, state in adapters.items():
        if problem := problem_with_adapter(state, like):
            raise InputError(f"{path}: {owner}: {problem}; it is of another base or config than this site's")
    return adapters
