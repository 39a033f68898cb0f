"""Inner products of the clients' updates: all norms, cosines and distances between n clients in one n × n matrix.

`fl_lightning.clustering.classical_scaling` has Gram matrices too, of a matrix in memory, centered at its mean. Here the
mean may be an attacker's: after subtracting one update of norm 1e30, no digit of the others' differences would be left.
Without centering every entry is as exact as its two updates allow.
"""

from __future__ import annotations

import numpy as np

from fl_lightning.linalg.client_matrix import Array, Residuals, blocks_of_columns

_SAME = 1e-13
"""Two updates are one where their squared distance is below this share of their squared norms: fp32's rounding."""


def gram_matrix(residuals: Residuals, clients: list[str]) -> Array:
    """``G_ij = Δ_i · Δ_j`` in fp64: shape (n, n), symmetric, in the order of `clients`. Each tensor is read once.

    Raises:
        ValueError: updates differ in names or shapes, or are not finite.

    Example:
        >>> import torch
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
    """``D_ij = ‖Δ_i − Δ_j‖² = G_ii + G_jj − 2 G_ij``: shape (n, n); zero where it is no more than rounding.

    Example:
        >>> squared_distances(np.array([[25.0, 3.0], [3.0, 1.0]])).tolist()
        [[0.0, 20.0], [20.0, 0.0]]
    """
    norms = gram.diagonal()[:, None] + gram.diagonal()[None, :]
    squared = norms - 2 * gram
    distances: Array = np.where(squared <= _SAME * norms, 0.0, squared)
    return distances
