"""Sums of squares of grouped clients, and Ward's tree of their departments for many random draws at once.

Ward 1963, "Hierarchical Grouping to Optimize an Objective Function". With W_a the weight of a group of clients and m_a
its weighted mean, merging two groups reduces the sum of squares between groups by

    ``W_a W_b / (W_a + W_b) · ‖m_a − m_b‖²``

SciPy's Ward has no weights and builds one tree at a time; a permutation test needs hundreds of small ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fl_lightning.clustering.dissimilarity import Dissimilarity
from fl_lightning.clustering.partition import Array, IntArray, Matrix


@dataclass(frozen=True, eq=False)
class DepartmentClients:
    """Clients with their departments and weights: the sample that tests of departments are based on.

    Attributes:
        dissimilarity: of the clients, under any representation.
        department_of: {client: department}.
        client_weights: {client: weight}, positive; None gives all the same.
    """

    dissimilarity: Dissimilarity
    department_of: Mapping[str, str]
    client_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        names = set(self.dissimilarity.names)
        for field, values in (("department_of", self.department_of), ("client_weights", self.client_weights)):
            if values is not None and (odd := sorted(names ^ values.keys())):
                problem = "got none" if odd[0] in names else "got one, but it is not compared"
                raise ValueError(f"{field}: expected one value for each client compared, {odd[0]} {problem}")
        for client, weight in (self.client_weights or {}).items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"client_weights: expected a positive finite weight for {client}, got {weight}")

    @cached_property
    def departments(self) -> list[str]:
        """Departments with a client, sorted."""
        return sorted(set(self.department_of.values()))

    @cached_property
    def ordered(self) -> list[str]:
        """Clients by department, then by name: the order of everything below."""
        return sorted(self.dissimilarity.names, key=lambda client: (self.department_of[client], client))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of clients of each department."""
        return [int(size) for size in np.bincount(self.department_index)]

    @cached_property
    def department_index(self) -> IntArray:
        """Index of each client's department, shape (n_clients,)."""
        index = {name: i for i, name in enumerate(self.departments)}
        return np.array([index[self.department_of[client]] for client in self.ordered])

    @cached_property
    def weights(self) -> Array:
        """Weights, scaled to mean 1: shape (n_clients,)."""
        by_client = self.client_weights
        raw = np.array([1.0 if by_client is None else float(by_client[client]) for client in self.ordered])
        scaled: Array = raw / raw.mean()
        return scaled

    @cached_property
    def points(self) -> Array:
        """Shape (n_clients, m), of weighted mean zero."""
        row = {client: index for index, client in enumerate(self.dissimilarity.names)}
        points = self.dissimilarity.points[[row[client] for client in self.ordered]]
        centered: Array = points - (self.weights @ points) / self.weights.sum()
        return centered


def within_cluster_ss(points: Matrix, weights: Array, labels: Iterable[int]) -> float:
    """``Σ w ‖x − weighted mean of its cluster‖²``.

    Example:
        >>> within_cluster_ss(np.array([[0.0], [3.0], [7.0]]), np.array([1.0, 2.0, 1.0]), [0, 0, 1])  # 1 · 4 + 2 · 1
        6.0
    """
    groups = np.asarray(list(labels))
    total = 0.0
    for group in np.unique(groups):
        x, w = points[groups == group], weights[groups == group]
        total += float(w @ ((x - (w @ x) / w.sum()) ** 2).sum(axis=1))
    return total


def ward_curves(sums: Array, weights: Array, groups: Iterable[int]) -> Array:
    """Sums of squares explained by splitting given groups, from Ward's trees of their departments.

    Args:
        sums: ``Σ w x`` over each department's clients, shape (draws, n, m).
        weights: ``Σ w`` over them, shape (draws, n).
        groups: label of each department, k different ones; only departments of one group are merged.

    Returns:
        Shape (draws, n − k): column j has the sum of squares between k + 1 + j groups less that between the k groups.

    Example:
        >>> ward_curves(np.array([[[0.0], [1.0], [5.0]]]), np.ones((1, 3)), [0, 0, 0])  # losses 0.5, then 13.5
        array([[13.5, 14. ]])
    """
    gram, weights = sums @ sums.transpose(0, 2, 1), weights.copy()
    draws, n = weights.shape
    labels = np.tile(np.asarray(list(groups)), (draws, 1))
    each, losses = np.arange(draws), []
    for size in range(n, len(set(labels[0].tolist())), -1):
        g, w, current = gram[:, :size, :size], weights[:, :size], labels[:, :size]
        norms = np.einsum("dii->di", g)
        alone, joint = norms / w, norms[:, :, None] + norms[:, None, :] + 2 * g
        loss = alone[:, :, None] + alone[:, None, :] - joint / (w[:, :, None] + w[:, None, :])
        loss[(current[:, :, None] != current[:, None, :]) | np.eye(size, dtype=bool)] = np.inf
        flat = loss.reshape(draws, -1)
        best = flat.argmin(axis=1)
        losses.append(np.maximum(flat[each, best], 0.0))
        first, second = np.divmod(best, size)
        first, second = np.minimum(first, second), np.maximum(first, second)
        g[each, first] += g[each, second]
        g[each, :, first] += g[each, :, second]
        w[each, first] += w[each, second]
        g[each, second] = g[each, size - 1]  # the last row fills the gap of the one that was merged
        g[each, :, second] = g[each, :, size - 1]
        w[each, second], current[each, second] = w[each, size - 1], current[each, size - 1]
    curves: Array = np.cumsum(np.array(losses[::-1]).T.reshape(draws, -1), axis=1)
    return curves
