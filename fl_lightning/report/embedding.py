"""Coordinates of adapters in a plane: principal components of the directions in which they moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fl_lightning.clustering.partition import Array
from fl_lightning.clustering.representations.product import product
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints
from fl_lightning.state import LoraState, is_lora_a, problem_with, select, snapshot
from fl_lightning.storage.files import natural_key
from fl_lightning.storage.run_layout import (
    ADAPTER_WEIGHTS,
    ADAPTERS,
    CHECKPOINT_TENSORS,
    CLIENT_EXPORTS,
    parse_client_export,
)
from fl_lightning.storage.tensors import read_state

MAX_NUMBERS = 2**27
"""Numbers of all adapters together (half a GiB); further clients are left out."""


@dataclass(frozen=True)
class MapPoint:
    """An adapter on the map; `client` is empty for the adapter of a department or group."""

    department: str
    client: str
    x: float
    y: float


@dataclass
class AdapterMap:
    """All adapters of a run on two axes.

    Attributes:
        points: the adapters.
        shares: of the variance, on the first and on the second axis.
        representation: the vectors that are mapped: ``delta``, A − A₀ scaled to unit length; ``a``, A if A₀ is unknown;
            ``product``, B A scaled to unit length, if A is frozen or the ranks differ.
        notes: sentences about adapters that are not on the map, and why.
    """

    points: list[MapPoint] = field(default_factory=list)
    shares: tuple[float, float] = (0.0, 0.0)
    representation: Literal["delta", "a", "product"] = "delta"
    notes: list[str] = field(default_factory=list)


def map_adapters(run_folder: Path) -> AdapterMap:
    """Put the departments' newest adapters and every client's newest exported one on a map.

    Returns:
        The map; without points if there are fewer than two adapters that can be compared.
    """
    result, initial = AdapterMap(), read_initial_a(run_folder)
    states = _read_adapters(run_folder, result.notes)
    if len(states) < 2:
        result.notes.append("No map: there are fewer than two adapters in adapters/ and client_exports/.")
        return result
    result.representation = "delta" if initial else "a"
    gram = _gram_of_a(states, initial)
    if gram is None:
        result.representation = "product"
        try:
            gram = product({f"{number:06}": state for number, state in enumerate(states.values())}).gram
        except ValueError as error:
            result.notes.append(f"No map: the adapters cannot be compared ({error}).")
            return result
    if gram is None or (gram - gram[0, 0] == 0).all():
        result.notes.append("No map: all adapters are equal.")
        return result
    coordinates, result.shares = principal_components(gram)
    result.points = [MapPoint(*owner, *map(float, xy)) for owner, xy in zip(states, coordinates, strict=True)]
    return result


def _read_adapters(run_folder: Path, notes: list[str]) -> dict[tuple[str, str], LoraState]:
    """{(department, client): adapter}; those that cannot be read are noted."""
    states: dict[tuple[str, str], LoraState] = {}
    num_numbers = 0
    for owner, path in _adapter_files(run_folder):
        if num_numbers >= MAX_NUMBERS:
            notes.append("The run has more clients than fit on the map.")
            break
        try:
            state = snapshot(read_state(path))
            if problem := problem_with(state, state):
                raise InputError(problem)
        except (InputError, OSError) as error:
            notes.append(f"{'/'.join(filter(None, owner))} is not on the map: {error}")
            continue
        states[owner] = state
        num_numbers += sum(tensor.numel() for tensor in state.values())
    return states


def _gram_of_a(states: Mapping[tuple[str, str], LoraState], initial: LoraState) -> Array | None:
    """Inner products of the A-matrices, shape (n, n); None if their ranks differ or none has changed."""
    factors = [select(state, "a") for state in states.values()]
    reference = initial or factors[0]
    if not reference or any(problem_with(factor, reference) for factor in factors):
        return None
    x = torch.stack(
        [torch.cat([(f[n] - initial[n] if initial else f[n]).flatten() for n in reference]) for f in factors]
    )
    if initial:
        x = torch.nn.functional.normalize(x, dim=1)
    gram: Array = (x @ x.T).double().numpy()
    return None if (x == x[0]).all() else gram


def read_initial_a(run_folder: Path) -> LoraState:
    """A₀ from the newest readable checkpoint; empty if there is none."""
    folders = checkpoints(run_folder)
    for round_num in sorted(folders, reverse=True):
        try:
            tensors = read_state(folders[round_num] / CHECKPOINT_TENSORS)
        except (InputError, OSError):
            continue
        parts = {key: key.split("|", 2) for key in tensors}
        return {
            p[2]: tensors[k].float() for k, p in parts.items() if len(p) == 3 and p[0] == "initial" and is_lora_a(p[2])
        }
    return {}


def _adapter_files(run_folder: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    """((department, client), file): departments and groups first, then each client's newest export."""
    root = run_folder.resolve()
    for path in sorted(run_folder.glob(f"{ADAPTERS}/*/{ADAPTER_WEIGHTS}"), key=lambda p: natural_key(p.parent.name)):
        if path.resolve().is_relative_to(root):
            yield (path.parent.name, ""), path
    newest: dict[tuple[str, str], tuple[int, Path]] = {}
    for path in run_folder.glob(f"{CLIENT_EXPORTS}/*/*/{ADAPTER_WEIGHTS}"):
        export = parse_client_export(path.parent.name)
        if export and path.resolve().is_relative_to(root):
            round_num, client = export
            owner = path.parents[1].name, client
            newest[owner] = max(newest.get(owner, (0, path)), (round_num, path))
    for owner in sorted(newest, key=lambda owner: natural_key("/".join(owner))):
        yield owner, newest[owner][1]


def principal_components(gram: Array) -> tuple[Array, tuple[float, float]]:
    """(coordinates of shape (n, 2), shares of the variance) on the first two principal components of n rows.

    This is classical multidimensional scaling of the rows' Euclidean distances. The sign of each axis is chosen so that
    its coordinate of largest magnitude is positive.

    Args:
        gram: inner products of the rows, shape (n, n).

    Example:
        >>> points, shares = principal_components(np.array([[0.0, 0.0], [0.0, 25.0]]))  # (0, 0) and (3, 4)
        >>> points.round(3).tolist(), shares
        ([[-2.5, 0.0], [2.5, 0.0]], (1.0, 0.0))
    """
    centered = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centered)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    points = np.zeros((len(gram), 2))
    for axis in range(2):
        if values[axis] > 1e-9 * max(values[0], 1e-30):
            points[:, axis] = vectors[:, axis] * np.sqrt(values[axis])
            if points[:, axis].max() < -points[:, axis].min() - 1e-6:
                points[:, axis] *= -1
    if len(gram) == 2 and points[0, 0] > 0:  # two points have coordinates of equal magnitude
        points[:, 0] *= -1
    total = float(values.sum()) or 1.0
    return points, (round(float(values[0]) / total, 6), round(float(values[1]) / total, 6))
