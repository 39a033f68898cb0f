"""Sums of squares of grouped clients, and Ward's tree of their departments for many draws at once.

Ward 1963, "Hierarchical Grouping to Optimize an Objective Function". With W_a the weight of a group of clients and m_a
its weighted mean, merging two groups loses

    ``W_a W_b / (W_a + W_b) · ‖m_a − m_b‖²``

of the sum of squares between groups. SciPy's Ward knows no weights and does one tree at a time; a permutation test
wants hundreds of small ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fl_lightning.clustering.dissimilarity import Relation
from fl_lightning.clustering.kmeans import Array, IntArray


@dataclass(frozen=True, eq=False)
class Clients:
    """Clients, whose they are and how much they count: what a test of departments needs to know.

    Attributes:
        relation: of the clients, under any representation.
        department_of: {client: department}.
        weights: {client: weight}, positive; 1 for all where None.
    """

    relation: Relation
    department_of: Mapping[str, str]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        names = set(self.relation.names)
        for what, given in (("department_of", self.department_of), ("weights", self.weights)):
            if given is not None and (odd := sorted(names ^ given.keys())):
                got, wanted = ("none", "one") if odd[0] in names else ("one", "none: the relation does not have it")
                raise ValueError(f"{what}: got {got} for client {odd[0]}, wanted {wanted}")
        for client, weight in (self.weights or {}).items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"weights: got {weight} for client {client}, wanted it positive and finite")

    @cached_property
    def departments(self) -> list[str]:
        """Departments with a client, sorted."""
        return sorted(set(self.department_of.values()))

    @cached_property
    def ordered(self) -> list[str]:
        """Clients by department, then by name: the order of everything below."""
        return sorted(self.relation.names, key=lambda client: (self.department_of[client], client))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of clients of each department."""
        return [int(size) for size in np.bincount(self.owner)]

    @cached_property
    def owner(self) -> IntArray:
        """Index of each client's department, shape (n_clients,)."""
        number = {name: index for index, name in enumerate(self.departments)}
        return np.array([number[self.department_of[client]] for client in self.ordered])

    @cached_property
    def mass(self) -> Array:
        """Weights, scaled to mean 1: shape (n_clients,)."""
        found = np.array([1.0 if self.weights is None else float(self.weights[c]) for c in self.ordered])
        scaled: Array = found / found.mean()
        return scaled

    @cached_property
    def points(self) -> Array:
        """Shape (n_clients, m), of weighted mean zero."""
        row = {client: index for index, client in enumerate(self.relation.names)}
        points = self.relation.points[[row[client] for client in self.ordered]]
        centred: Array = points - (self.mass @ points) / self.mass.sum()
        return centred


def within(points: Array, mass: Array, groups: Iterable[int]) -> float:
    """``Σ w ‖x − weighted mean of its group‖²``.

    Example:
        >>> within(np.array([[0.0], [3.0], [7.0]]), np.array([1.0, 2.0, 1.0]), [0, 0, 1])  # mean 2: 1 · 4 + 2 · 1
        6.0
    """
    labels = np.asarray(list(groups))
    total = 0.0
    for group in np.unique(labels):
        x, w = points[labels == group], mass[labels == group]
        total += float(w @ ((x - (w @ x) / w.sum()) ** 2).sum(axis=1))
    return total


def ward_curves(sums: Array, mass: Array, groups: Iterable[int]) -> Array:
    """What the splits of given groups explain, by Ward's trees of their departments.

    Args:
        sums: ``Σ w x`` of each department's clients, shape (draws, n, m).
        mass: ``Σ w`` of them, shape (draws, n).
        groups: of each department, k different labels; only departments of one group are merged.

    Returns:
        Shape (draws, n − k): column j has the sum of squares between k + 1 + j groups less that between the k.

    Example:
        >>> ward_curves(np.array([[[0.0], [1.0], [5.0]]]), np.ones((1, 3)), [0, 0, 0])  # losses 0.5, then 13.5
        array([[13.5, 14. ]])
    """
    gram, mass = sums @ sums.transpose(0, 2, 1), mass.copy()
    draws, n = mass.shape
    labels = np.tile(np.asarray(list(groups)), (draws, 1))
    each, losses = np.arange(draws), []
    for size in range(n, len(set(labels[0].tolist())), -1):
        g, w, own = gram[:, :size, :size], mass[:, :size], labels[:, :size]
        norms = np.einsum("dii->di", g)
        alone, joint = norms / w, norms[:, :, None] + norms[:, None, :] + 2 * g
        loss = alone[:, :, None] + alone[:, None, :] - joint / (w[:, :, None] + w[:, None, :])
        loss[(own[:, :, None] != own[:, None, :]) | np.eye(size, dtype=bool)] = np.inf
        flat = loss.reshape(draws, -1)
        best = flat.argmin(axis=1)
        losses.append(np.maximum(flat[each, best], 0.0))
        first, second = np.divmod(best, size)
        first, second = np.minimum(first, second), np.maximum(first, second)
        g[each, first] += g[each, second]
        g[each, :, first] += g[each, :, second]
        w[each, first] += w[each, second]
        g[each, second] = g[each, size - 1]  # the last takes the place of the one that is gone
        g[each, :, second] = g[each, :, size - 1]
        w[each, second], own[each, second] = w[each, size - 1], own[each, size - 1]
    curves: Array = np.cumsum(np.array(losses[::-1]).T.reshape(draws, -1), axis=1)
    return curves
