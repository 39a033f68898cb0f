import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.clustering import classical_scaling
from fl_lightning.clustering.classical_scaling import centered_rows, count_distinct, gram_matrices, points_from_gram


def points_of(x):
    return centered_rows(x) if x.shape[1] <= x.shape[0] else points_from_gram(gram_matrices(x)[0])


def distinct(points, bound, limit=100):
    return count_distinct(lambda i: ((points - points[i]) ** 2).sum(axis=1), len(points), bound, limit)


def pairwise(x):
    return ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)


@pytest.mark.parametrize("shape", [(6, 500), (6, 3), (4, 4), (1, 9), (2, 1)])
def test_points_keep_all_pairwise_distances(shape):
    x = np.random.default_rng(1).normal(size=shape) + 7
    points = points_of(x)
    assert points.shape[1] <= min(shape) or points.shape[1] == 1
    np.testing.assert_allclose(pairwise(points), pairwise(x), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 30))
def test_points_keep_distances_of_any_matrix(seed, rows, features):
    x = np.random.default_rng(seed).normal(size=(rows, features))
    np.testing.assert_allclose(pairwise(points_of(x)), pairwise(x), rtol=1e-8, atol=1e-9)


def test_points_from_a_gram_matrix_have_these_inner_products():
    # Rank 2 of three points (1,0), (0,2), (1,2).
    gram = np.array([[1.0, 0.0, 1.0], [0.0, 4.0, 4.0], [1.0, 4.0, 5.0]])
    points = points_from_gram(gram)
    assert points.shape[0] == 3
    np.testing.assert_allclose(points @ points.T, gram, atol=1e-12)


def test_points_of_a_zero_gram_matrix_are_zero():
    assert np.array_equal(points_from_gram(np.zeros((3, 3))), np.zeros((3, 1)))


def test_gram_matrices_by_hand():
    # Rows (1, 2), (3, 6): mean (2, 4), centered (−1, −2), (1, 2); their products are ±5.
    centered, raw = gram_matrices(np.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_allclose(centered, [[5, -5], [-5, 5]])
    np.testing.assert_allclose(raw, [[5, 15], [15, 45]])


def test_gram_matrices_are_those_of_the_whole_matrix_in_fp64(monkeypatch):
    monkeypatch.setattr(classical_scaling, "_BLOCK", 7)
    x = (np.random.default_rng(0).normal(size=(9, 50)) + 3).astype(np.float32)
    centered, raw = gram_matrices(x)
    wide = x.astype(np.float64)
    wide_centred = wide - wide.mean(axis=0)
    np.testing.assert_allclose(raw, wide @ wide.T, rtol=1e-12)
    np.testing.assert_allclose(centered, wide_centred @ wide_centred.T, atol=1e-12)
    assert np.array_equal(centered, centered.T)
    assert np.array_equal(raw, raw.T)


def test_distinct_points_are_counted_up_to_rounding():
    points = np.array([[0.0], [1e-9], [1.0], [1.0 + 1e-9], [2.0]])
    assert distinct(points, 4e-13) == 3


def test_points_that_differ_by_more_than_fp32_rounding_are_distinct():
    assert distinct(np.array([[1.0], [1.00001]]), 1e-13) == 2


def distinct_by_a_double_loop(points, bound):
    leaders = []
    for point in points:
        if all(((point - other) ** 2).sum() > bound for other in leaders):
            leaders.append(point)
    return len(leaders)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 4))
def test_distinct_points_are_those_of_the_double_loop(seed, rows, features):
    # Neighbours on a grid of 1 are within the bound 1.5, so chains a–b–c with a, c far apart occur.
    points = np.random.default_rng(seed).integers(0, 4, size=(rows, features)).astype(float)
    expected = distinct_by_a_double_loop(points, 1.5)
    assert distinct(points, 1.5) == expected
    assert distinct(points, 1.5, limit=3) == min(expected, 3)
