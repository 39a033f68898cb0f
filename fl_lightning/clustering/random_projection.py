"""Gaussian random projection of many rows to fewer features.

Johnson & Lindenstrauss 1984, "Extensions of Lipschitz mappings into a Hilbert space"; the constants are those of
Dasgupta & Gupta 2003, "An elementary proof of a theorem of Johnson and Lindenstrauss".
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fl_lightning.clustering.classical_scaling import centered_blocks
from fl_lightning.clustering.partition import Matrix

DISTANCE_ERROR, FAILURE_PROBABILITY = 0.25, 0.01
"""A projection keeps every squared distance within 1 ± DISTANCE_ERROR, except with probability FAILURE_PROBABILITY."""


def projection_size(n: int) -> int:
    """Dimensions that keep all n (n − 1) / 2 squared distances within `DISTANCE_ERROR`.

    One distance fails with probability 2 exp(−m (eps² / 2 − eps³ / 3) / 2) at most; the union bound over all pairs is
    `FAILURE_PROBABILITY`. scikit-learn's `johnson_lindenstrauss_min_dim` gives fewer dimensions, but promises success
    only with probability 1 / n.
    """
    exponent = DISTANCE_ERROR**2 / 2 - DISTANCE_ERROR**3 / 3
    return math.ceil(2 * math.log(n * (n - 1) / FAILURE_PROBABILITY) / exponent)


def random_projection(x: Matrix, *, seed: int) -> npt.NDArray[np.float32]:
    """Gaussian random projection of the rows, in fp32.

    With probability 1 − `FAILURE_PROBABILITY` every squared distance is within 1 ± `DISTANCE_ERROR` of the exact one.
    The inertia of a partition is a weighted sum of squared distances, so it is within the same bounds, and the best
    partition of the projected rows has at most (1 + eps) / (1 − eps) times the smallest inertia possible.

    Args:
        x: shape (n, d), n at least 2; read in blocks, not copied.
        seed: seed of the projection.

    Returns:
        Shape (n, m) with m = `projection_size` of n.
    """
    generator, size = np.random.default_rng(seed), projection_size(len(x))
    points = np.zeros((len(x), size), dtype=np.float32)
    for block, _ in centered_blocks(x, np.float32):
        points += block @ generator.standard_normal((block.shape[1], size), dtype=np.float32)
    points /= np.float32(math.sqrt(size))
    return points
