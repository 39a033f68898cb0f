"""Clients' updates as rows of a matrix, some columns at a time.

Updates may be on disk: each tensor is asked for once, and only a block of columns is ever in fp64.
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
"""Elements of a block, 8 MiB in fp64, over all clients."""


def check_clients(residuals: Residuals, weights: Weights) -> list[str]:
    """The clients, sorted; no tensor is read.

    Raises:
        ValueError: no clients, a client without a weight or the other way round, or a weight that is not positive.
    """
    if not residuals:
        raise ValueError("residuals: got none, wanted those of at least one client")
    if odd := sorted(residuals.keys() ^ weights.keys()):
        raise ValueError(f"{odd[0]} is not in both residuals and weights; wanted the same clients")
    for client_id in sorted(weights):
        if not (weights[client_id] > 0 and math.isfinite(weights[client_id])):
            raise ValueError(f"{client_id}: got weight {weights[client_id]}, wanted a positive finite number")
    return sorted(residuals)


def _tensors(residuals: Residuals, clients: list[str]) -> Iterator[tuple[str, torch.Size, list[torch.Tensor]]]:
    """Each tensor's name, in sorted order, its shape and what each client has there, flat, in the order given."""
    names = residuals[clients[0]].keys()
    for client_id in clients:
        if odd := sorted(residuals[client_id].keys() ^ names):
            raise ValueError(f"{odd[0]} is not in the updates of both {clients[0]} and {client_id}; wanted equal names")
    for name in sorted(names):
        tensors = [residuals[client_id][name] for client_id in clients]
        shape = tensors[0].shape
        for client_id, tensor in zip(clients, tensors, strict=True):
            if tensor.shape != shape:
                got, wanted = tuple(tensor.shape), tuple(shape)
                raise ValueError(f"{client_id}: {name} has shape {got}, wanted {wanted} as {clients[0]} has")
        yield name, shape, [tensor.detach().flatten() for tensor in tensors]


def _blocks(name: str, flat: list[torch.Tensor], clients: list[str]) -> Iterator[tuple[slice, Array]]:
    """Which columns, and their fp64 values of shape (clients, columns)."""
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
    """The updates, shape (clients, columns) in fp64 each, tensors in sorted order.

    Raises:
        ValueError: updates differ in names or shapes, or are not finite.
    """
    for name, _, flat in _tensors(residuals, clients):
        for _, block in _blocks(name, flat, clients):
            yield block


def by_coordinate(residuals: Residuals, clients: list[str], reduce: Callable[[Array], Array]) -> LoraState:
    """A state whose every coordinate comes from the clients' values there, sorted.

    Args:
        residuals: the updates.
        clients: of whom.
        reduce: from columns in ascending order, shape (clients, columns) in fp64, to shape (columns,).

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
