"""Clients' updates as rows of a matrix, block by block, and their Gram matrix.

Updates may be on disk: each tensor is read once, and only a block of columns is in fp64 at a time.

The Gram matrix gives all norms, cosines and distances between n clients from one n × n matrix. Unlike those of
`fl_lightning.clustering`, it is not centered: the mean may be an attacker's, and one update of norm 1e30 in it would
leave no digits of the differences between the others. Without centering every entry is as exact as its two updates
allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.state import LoraState

Residuals: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""{client_id: Δ_c = θ_c − θ_start over what is shared}."""
Weights: TypeAlias = Mapping[str, float]
"""{client_id: aggregation weight, positive}."""
Array: TypeAlias = npt.NDArray[np.float64]

_BLOCK = 1 << 20
"""Elements of a block over all clients, 8 MiB in fp64."""
_ROUNDING = 1e-13
"""A squared distance below this fraction of the squared norms is zero: a rounding error of fp32 updates."""


def check_clients(residuals: Residuals, weights: Weights) -> list[str]:
    """The client ids, sorted; no tensor is read.

    Raises:
        ValueError: no clients, different clients in residuals and weights, or a weight that is not positive and finite.
    """
    if not residuals:
        raise ValueError("residuals: expected at least one client, got none")
    if differing := sorted(residuals.keys() ^ weights.keys()):
        where = "residuals" if differing[0] in residuals else "weights"
        raise ValueError(f"{differing[0]}: expected the same clients in residuals and weights, got it in {where} only")
    for client_id in sorted(weights):
        if not (weights[client_id] > 0 and math.isfinite(weights[client_id])):
            raise ValueError(f"{client_id}: expected a positive finite weight, got {weights[client_id]}")
    return sorted(residuals)


def _tensors(residuals: Residuals, clients: list[str]) -> Iterator[tuple[str, torch.Size, list[torch.Tensor]]]:
    """(name, shape, flat tensor of each client), names in sorted order, clients in the order given."""
    names = residuals[clients[0]].keys()
    for client_id in clients:
        if differing := sorted(residuals[client_id].keys() ^ names):
            raise ValueError(
                f"{differing[0]}: expected equal names in all updates, got it in {clients[0]} or {client_id} only"
            )
    for name in sorted(names):
        tensors = [residuals[client_id][name] for client_id in clients]
        shape = tensors[0].shape
        for client_id, tensor in zip(clients, tensors, strict=True):
            if tensor.shape != shape:
                raise ValueError(
                    f"{client_id}: {name}: expected shape {tuple(shape)} as for {clients[0]}, got {tuple(tensor.shape)}"
                )
        yield name, shape, [tensor.detach().flatten() for tensor in tensors]


def _blocks(name: str, flat: list[torch.Tensor], clients: list[str]) -> Iterator[tuple[slice, Array]]:
    """(columns, their values in fp64 with shape (clients, columns))."""
    columns = max(1, _BLOCK // len(clients))
    for first in range(0, flat[0].numel(), columns):
        part = slice(first, min(first + columns, flat[0].numel()))
        block = torch.empty(len(clients), part.stop - part.start, dtype=torch.float64)
        for row, values in zip(block, flat, strict=True):
            row.copy_(values[part])
        finite = torch.isfinite(block).all(dim=1)
        if not finite.all():
            raise ValueError(f"{clients[int(finite.int().argmin())]}: {name} is not finite (NaN or infinity)")
        yield part, block.numpy()


def blocks_of_columns(residuals: Residuals, clients: list[str]) -> Iterator[Array]:
    """Blocks of the updates, each of shape (clients, columns) in fp64, tensors in sorted order.

    Raises:
        ValueError: updates differ in names or shapes, or are not finite.
    """
    for name, _, flat in _tensors(residuals, clients):
        for _, block in _blocks(name, flat, clients):
            yield block


def by_coordinate(residuals: Residuals, clients: list[str], reduce: Callable[[Array], Array]) -> LoraState:
    """Reduce the clients' values of each coordinate to one.

    Args:
        residuals: the updates.
        clients: ids of the clients to use.
        reduce: takes the values of a block, each column sorted in ascending order, shape (clients, columns) in fp64,
            and returns shape (columns,).

    Returns:
        fp32 on the CPU, names sorted.

    Raises:
        ValueError: updates differ in names or shapes, or are not finite.
    """
    state: LoraState = {}
    for name, shape, flat in _tensors(residuals, clients):
        values = torch.empty(flat[0].numel(), dtype=torch.float32)
        for part, block in _blocks(name, flat, clients):
            block.sort(axis=0)
            values[part] = torch.from_numpy(reduce(block)).to(torch.float32)
        state[name] = values.view(shape)
    return state


def gram_matrix(residuals: Residuals, clients: list[str]) -> Array:
    """``G_ij = Δ_i · Δ_j`` in fp64: shape (n, n), symmetric, in the order of `clients`. Each tensor is read once.

    Raises:
        ValueError: updates differ in names or shapes, or are not finite.

    Example:
        >>> residuals = {"hr/a": {"x": torch.tensor([3.0, 4.0])}, "hr/b": {"x": torch.tensor([1.0, 0.0])}}
        >>> gram_matrix(residuals, ["hr/a", "hr/b"]).tolist()
        [[25.0, 3.0], [3.0, 1.0]]
    """
    gram = np.zeros((len(clients), len(clients)))
    for block in blocks_of_columns(residuals, clients):
        gram += block @ block.T
    symmetric: Array = (gram + gram.T) / 2
    return symmetric


def squared_distances(gram: Array) -> Array:
    """``D_ij = ‖Δ_i − Δ_j‖² = G_ii + G_jj − 2 G_ij``: shape (n, n); zero if it is only a rounding error.

    Example:
        >>> squared_distances(np.array([[25.0, 3.0], [3.0, 1.0]])).tolist()
        [[0.0, 20.0], [20.0, 0.0]]
    """
    norms = gram.diagonal()[:, None] + gram.diagonal()[None, :]
    squared = norms - 2 * gram
    distances: Array = np.where(squared <= _ROUNDING * norms, 0.0, squared)
    return distances
