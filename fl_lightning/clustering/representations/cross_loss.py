"""Departments by how well their adapters do on each other's held-out records.

Ghosh, Chung, Yin & Ramchandran 2020, "An Efficient Framework for Clustered Federated Learning" (IFCA, arXiv 2006.04088)
assign clients to the model with the lowest loss on their data. Here the whole n × n matrix of losses is used. It does
not depend on how adapters are factorized; it costs n² evaluations, and it needs adapters that have learned something.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fl_lightning.clustering.dissimilarity import Dissimilarity, from_dissimilarity
from fl_lightning.clustering.partition import Array


def cross_loss(states: Iterable[str], *, losses: Array) -> Dissimilarity:
    """``d_ij = ((L_ij − L_jj) + (L_ji − L_ii)) / 2``, at least 0: how much worse another department's adapter is.

    Near an optimum a loss grows with the squared distance from it, so d is half a squared distance as in the other
    representations. It does not come from a Gram matrix.

    Args:
        states: names of the departments, or a mapping with these keys.
        losses: L[i, j], the loss of department i's adapter on j's held-out records, both in sorted order of names;
            shape (n, n).

    Raises:
        ValueError: the shape does not fit, or a loss is not finite.

    Example:
        >>> cross_loss(["hr", "it"], losses=np.array([[1.0, 5.0], [2.0, 3.0]])).dissimilarity
        array([[0. , 1.5],
               [1.5, 0. ]])
    """
    names = sorted(states)
    losses = np.asarray(losses, dtype=np.float64)
    if losses.shape != (len(names), len(names)):
        expected = (len(names), len(names))
        raise ValueError(f"losses: expected shape {expected}, in order of {names[:8]}, got {losses.shape}")
    if not np.isfinite(losses).all():
        i, j = (int(index) for index in np.argwhere(~np.isfinite(losses))[0])
        raise ValueError(f"losses: expected finite numbers, got {losses[i, j]} for {names[i]} on records of {names[j]}")
    gap = losses - losses.diagonal()[None, :]
    return from_dissimilarity(names, (gap + gap.T) / 2)
