"""What a site keeps of a run for `personalize`: the adapters that the server sent at the end, and its own config.

<output>/sites/<department>.<client>/<run>/config.yaml
<output>/sites/<department>.<client>/<run>/received/{levels.safetensors,site.json}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import to_yaml
from fl_lightning.errors import InputError
from fl_lightning.linalg.factors import pair_names
from fl_lightning.state import LoraState
from fl_lightning.storage.files import atomic_folder, read_json, write_json, write_text
from fl_lightning.storage.run_layout import CONFIG, RECEIVED
from fl_lightning.storage.tensors import read_state, write_state

LEVELS = ("department", "cluster", "root")
"""Levels that a server may send."""


def write_levels(
    folder: Path, config: RunConfig, client_id: str, levels: Mapping[str, Mapping[str, torch.Tensor]], rounds: int
) -> None:
    """Keep the levels of a run that has ended; the config last, by which the folder becomes a run's.

    Args:
        folder: of the site and the run.
        config: of the site.
        client_id: of the site.
        levels: {level: whole adapter}.
        rounds: of the run.

    Raises:
        ValueError: if there is an unknown level, or not the department's.
    """
    if unknown := sorted(set(levels) - set(LEVELS)) or "department" not in levels:
        raise ValueError(f"levels: expected department and some of {', '.join(LEVELS[1:])}, got {str(unknown)[:80]}")
    tensors = {f"{level}|{name}": tensor for level, state in levels.items() for name, tensor in state.items()}
    with atomic_folder(folder / RECEIVED) as temporary:
        write_state(temporary / "levels.safetensors", tensors)
        write_json(temporary / "site.json", {"client": client_id})
    write_text(folder / CONFIG, to_yaml(replace(config, federation=replace(config.federation, rounds=rounds))))


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
    path = folder / RECEIVED / "levels.safetensors"
    levels: dict[str, LoraState] = {}
    for key, tensor in read_state(path).items():
        level, _, name = key.partition("|")
        levels.setdefault(level, {})[name] = tensor
    for level, state in levels.items():
        if problem := _problem(state, like):
            raise InputError(f"{path}: {level}: {problem}; it is of another base or config than this site's")
    return {level: levels[level] for level in LEVELS if level in levels}


def _problem(state: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> str | None:
    """Why an adapter, of any rank, does not fit the model; None if it does."""
    if state.keys() != like.keys():
        return f"expected the tensors of this model's adapter, got another {sorted(state.keys() ^ like.keys())[0]}"
    for names in pair_names(like).values():
        a, b = state[names.a], state[names.b]
        shapes = (like[names.b].shape[0], like[names.a].shape[1])
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != shapes or a.shape[0] != b.shape[1]:
            return f"{names.a}: expected a product of shape {tuple(shapes)}, got {tuple(b.shape)} by {tuple(a.shape)}"
        if not bool(a.isfinite().all() and b.isfinite().all()):
            return f"{names.a}: expected finite numbers, got NaN or infinity"
    return None
