import math

import numpy as np
import pytest

from fl_lightning.clustering.random_projection import (
    DISTANCE_ERROR,
    FAILURE_PROBABILITY,
    projection_size,
    random_projection,
)


def test_the_size_keeps_the_stated_probability():
    # eps = 1/4: eps²/2 − eps³/3 = 5/192; 2 · 192/5 · ln(10⁴ · 9999 / 0.01) = 76.8 · 23.0258 = 1768.4
    assert (DISTANCE_ERROR, FAILURE_PROBABILITY) == (0.25, 0.01)
    assert projection_size(10_000) == 1769
    n, m = 300, projection_size(300)
    assert n * (n - 1) / 2 * 2 * math.exp(-m * 5 / 192 / 2) <= 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_projection_keeps_squared_distances_within_the_stated_error(seed):
    x = np.random.default_rng(seed).standard_normal((60, 5000), dtype=np.float32)
    x[:30, :10] += 20  # few features hold most of the distance between halves
    others = ~np.eye(60, dtype=bool)
    points = random_projection(x, seed=seed)
    assert points.shape == (60, projection_size(60))
    # |a − b|² = |a|² + |b|² − 2 a·b
    exact, near = (
        (p**2).sum(1)[:, None] + (p**2).sum(1) - 2 * p @ p.T for p in (x.astype(float), points.astype(float))
    )
    assert np.abs(near[others] / exact[others] - 1).max() <= DISTANCE_ERROR


def test_a_projection_repeats_with_its_seed():
    x = np.random.default_rng(0).normal(size=(5, 3000))
    assert np.array_equal(random_projection(x, seed=3), random_projection(x, seed=3))
    assert not np.array_equal(random_projection(x, seed=3), random_projection(x, seed=4))
