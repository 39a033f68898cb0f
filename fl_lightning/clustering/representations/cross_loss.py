"""Departments by what their adapters do for each other: losses on one another's held-out records.

Ghosh, Chung, Yin & Ramchandran 2020, "An Efficient Framework for Clustered Federated Learning" (IFCA, arXiv 2006.04088)
groups clients by which model has the lowest loss on their data. Here the whole n × n matrix is used: it does not ask
how weights are written down, it costs n² evaluations, and it needs adapters that have learnt something.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fl_lightning.clustering.dissimilarity import Relation, from_dissimilarity
from fl_lightning.clustering.kmeans import Array


def cross_loss(states: Iterable[str], *, losses: Array) -> Relation:
    """``d_ij = ((L_ij − L_jj) + (L_ji − L_ii)) / 2``, floored at 0: what strangers lose against those at home.

    Near an optimum a loss grows with the square of the distance from it, so that d is half a squared distance like all
    others. It comes from no kernel.

    Args:
        states: names of the departments; a mapping with them as keys will do.
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
        raise ValueError(
            f"losses: got shape {losses.shape}, wanted {(len(names), len(names))}, in order of {names[:8]}"
        )
    if not np.isfinite(losses).all():
        i, j = (int(index) for index in np.argwhere(~np.isfinite(losses))[0])
        raise ValueError(f"losses: got {losses[i, j]} for {names[i]} on the records of {names[j]}, wanted it finite")
    gap = losses - losses.diagonal()[None, :]
    return from_dissimilarity(names, (gap + gap.T) / 2)
