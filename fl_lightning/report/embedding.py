"""Where adapters lie to each other: principal components of the direction in which they moved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fl_lightning.clustering.kmeans import Array
from fl_lightning.clustering.representations.product import product
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints
from fl_lightning.state import LoraState, is_lora_a, problem_with, select, snapshot
from fl_lightning.storage.files import natural_key
from fl_lightning.storage.tensors import read_state

MOST_NUMBERS = 2**27
"""Of all adapters together, half a GiB; further clients are left off the map."""

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Place:
    """An adapter on the map."""

    department: str
    client: str
    """Empty for a department's or a group's own adapter."""
    x: float
    y: float


@dataclass
class Places:
    """A map.

    Attributes:
        shares: of the variance on the first and on the second axis.
        of: what is mapped: ``delta``, A − A₀ scaled to length one; ``a`` where A₀ is not known; ``product``, B A scaled
            to length one, where A tells nothing, being frozen or of several ranks.
        notes: what is not on it, and why.
    """

    places: list[Place] = field(default_factory=list)
    shares: tuple[float, float] = (0.0, 0.0)
    of: Literal["delta", "a", "product"] = "delta"
    notes: list[str] = field(default_factory=list)


def map_adapters(run_folder: Path) -> Places:
    """Put the departments' newest adapters and every client's newest exported one on a map.

    Returns:
        The map; without places where there are fewer than two adapters that can be compared.
    """
    found, initial = Places(), initial_a(run_folder)
    states = _read(run_folder, found)
    if len(states) < 2:
        found.notes.append("No map: there are fewer than two adapters in adapters/ and client_exports/.")
        return found
    found.of = "delta" if initial else "a"
    gram = _gram_of_a(states, initial)
    if gram is None:
        found.of = "product"
        try:
            gram = product({f"{number:06}": state for number, state in enumerate(states.values())}).gram
        except ValueError as error:
            found.notes.append(f"No map: the adapters cannot be compared ({error}).")
            return found
    if gram is None or (gram - gram[0, 0] == 0).all():
        found.notes.append("No map: the adapters are all alike.")
        return found
    points, found.shares = components(gram)
    found.places = [Place(*who, *map(float, point)) for who, point in zip(states, points, strict=True)]
    return found


def _read(run_folder: Path, found: Places) -> dict[tuple[str, str], LoraState]:
    states: dict[tuple[str, str], LoraState] = {}
    numbers = 0
    for who, path in _adapters(run_folder):
        if numbers >= MOST_NUMBERS:
            found.notes.append("There are more clients than fit on the map.")
            break
        try:
            state = snapshot(read_state(path))
            if problem := problem_with(state, state):
                raise InputError(problem)
        except (InputError, OSError) as error:
            found.notes.append(f"{'/'.join(filter(None, who))} is not on the map: {error}")
            continue
        states[who] = state
        numbers += sum(tensor.numel() for tensor in state.values())
    return states


def _gram_of_a(states: Mapping[tuple[str, str], LoraState], initial: LoraState) -> Array | None:
    """Inner products of the rows that are mapped; None where A is of several ranks, or nobody's has moved."""
    factors = [select(state, "a") for state in states.values()]
    start = initial or factors[0]
    if not start or any(problem_with(own, start) for own in factors):
        return None
    x = torch.stack(
        [torch.cat([(own[n] - initial[n] if initial else own[n]).flatten() for n in start]) for own in factors]
    )
    if initial:
        x = torch.nn.functional.normalize(x, dim=1)
    gram: Array = (x @ x.T).double().numpy()
    return None if (x == x[0]).all() else gram


def initial_a(run_folder: Path) -> LoraState:
    """A₀ out of the newest checkpoint that can be read; empty where there is none."""
    folders = checkpoints(run_folder) if (run_folder / "checkpoints").is_dir() else {}
    for round_num in sorted(folders, reverse=True):
        try:
            tensors = read_state(folders[round_num] / "state.safetensors")
        except (InputError, OSError):
            continue
        parts = {key: key.split("|", 2) for key in tensors}
        return {
            p[2]: tensors[k].float() for k, p in parts.items() if len(p) == 3 and p[0] == "initial" and is_lora_a(p[2])
        }
    return {}


def _adapters(run_folder: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    """((department, client), file): departments and groups first, then each client's newest export."""
    whole = run_folder.resolve()
    for path in sorted(run_folder.glob(f"adapters/*/{WEIGHTS}"), key=lambda p: natural_key(p.parent.name)):
        if path.resolve().is_relative_to(whole):
            yield (path.parent.name, ""), path
    newest: dict[tuple[str, str], tuple[int, Path]] = {}
    for path in run_folder.glob(f"client_exports/*/round_*/{WEIGHTS}"):
        match = re.fullmatch(r"round_([0-9]{1,9})_(.+)", path.parent.name)
        if match and path.resolve().is_relative_to(whole):
            who = path.parents[1].name, match[2]
            newest[who] = max(newest.get(who, (0, path)), (int(match[1]), path))
    for who in sorted(newest, key=lambda w: natural_key("/".join(w))):
        yield who, newest[who][1]


def components(gram: Array) -> tuple[Array, tuple[float, float]]:
    """(coordinates of shape (n, 2), shares of the variance) on the first two principal components of n rows.

    That is classical multidimensional scaling of the rows' Euclidean distances. Each axis points to where its largest
    coordinate is positive.

    Args:
        gram: inner products of the rows, shape (n, n).

    Example:
        >>> points, shares = components(np.array([[0.0, 0.0], [0.0, 25.0]]))  # (0, 0) and (3, 4)
        >>> points.round(3).tolist(), shares
        ([[-2.5, 0.0], [2.5, 0.0]], (1.0, 0.0))
    """
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    points = np.zeros((len(gram), 2))
    for axis in range(2):
        if values[axis] > 1e-9 * max(values[0], 1e-30):
            points[:, axis] = vectors[:, axis] * np.sqrt(values[axis])
            if points[:, axis].max() < -points[:, axis].min() - 1e-6:
                points[:, axis] *= -1
    if len(gram) == 2 and points[0, 0] > 0:  # two points are as far from the middle, whichever comes first
        points[:, 0] *= -1
    total = float(values.sum()) or 1.0
    return points, (round(float(values[0]) / total, 6), round(float(values[1]) / total, 6))
