import tracemalloc

import numpy as np
import pytest

from fl_lightning.clustering import classical_scaling
from fl_lightning.clustering.dissimilarity import cosine_similarity, from_dissimilarity, from_gram, from_rows, smooth
from fl_lightning.clustering.random_projection import random_projection

NAMES = ["a", "b", "c"]
X = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])


def test_dissimilarity_is_half_the_squared_distance():
    dissimilarity = from_gram(NAMES, X @ X.T)
    np.testing.assert_allclose(dissimilarity.distance, [[0, 5, 10], [5, 0, 5], [10, 5, 0]])
    np.testing.assert_allclose(dissimilarity.dissimilarity, [[0, 12.5, 50], [12.5, 0, 12.5], [50, 12.5, 0]])


def test_points_are_as_far_apart_as_the_relation_says():
    x = np.random.default_rng(0).standard_normal((7, 20)) + 5
    dissimilarity = from_gram(list("abcdefg"), x @ x.T)
    points = dissimilarity.points
    distances = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.testing.assert_allclose(distances, np.linalg.norm(x[:, None] - x[None, :], axis=2), atol=1e-9)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)


def test_points_of_a_line_lie_on_one_line():
    assert from_gram(NAMES, X @ X.T).points.shape[1] == 1


def test_distances_without_a_kernel_come_back_from_points():
    d = from_gram(NAMES, X @ X.T).dissimilarity
    dissimilarity = from_dissimilarity(NAMES, d)
    assert dissimilarity.gram is None
    np.testing.assert_allclose(np.sort(dissimilarity.points.ravel()), [-5, 0, 5], atol=1e-9)


def test_centred_products_keep_differences_that_are_small_beside_the_start():
    start = np.full(50, 1e6)
    x = start + np.random.default_rng(1).standard_normal((3, 50)) * 1e-3
    centered = x - x.mean(axis=0)
    dissimilarity = from_gram(NAMES, x @ x.T, centered @ centered.T)
    np.testing.assert_allclose(dissimilarity.distance[0, 1], np.linalg.norm(x[0] - x[1]), rtol=1e-6)


def test_distinct_counts_equal_rows_once():
    x = np.array([[1.0, 2.0], [1.0, 2.0], [4.0, 2.0]])
    assert from_gram(NAMES, x @ x.T).distinct == 2
    assert from_gram(NAMES, np.ones((3, 3))).distinct == 1
    assert from_dissimilarity(NAMES, np.zeros((3, 3))).distinct == 1
    assert from_gram(["a"], np.ones((1, 1))).distinct == 1


def test_values_below_zero_and_on_the_diagonal_count_as_zero():
    dissimilarity = from_dissimilarity(["a", "b"], np.array([[7.0, -1.0], [-1.0, 7.0]]))
    assert dissimilarity.dissimilarity.tolist() == [[0, 0], [0, 0]]


def test_smoothing_is_an_exponential_moving_average():
    before, now = (from_gram(["a", "b"], np.array([[1.0, c], [c, 1.0]])) for c in (0.8, 0.2))
    mixed = smooth(before, now, share=0.5)
    assert mixed.dissimilarity[0, 1] == pytest.approx(0.5)
    assert mixed.gram[0, 1] == pytest.approx(0.5)
    assert smooth(mixed, now, share=0.5).dissimilarity[0, 1] == pytest.approx(0.65)
    assert smooth(None, now, share=0.5) is now


def test_smoothing_lets_departments_come_and_go():
    before = from_dissimilarity(NAMES, np.array([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]]))
    now = from_dissimilarity(["b", "c", "d"], np.array([[0.0, 5, 6], [5, 0, 7], [6, 7, 0]]))
    mixed = smooth(before, now, share=0.5)
    assert mixed.names == ["b", "c", "d"]
    np.testing.assert_allclose(mixed.dissimilarity, [[0, 4, 6], [4, 0, 7], [6, 7, 0]])  # b–c: (3 + 5) / 2


def test_smoothing_a_kernel_with_distances_gives_distances():
    kernel = from_gram(["a", "b"], np.eye(2))
    assert smooth(kernel, from_dissimilarity(["a", "b"], 1 - np.eye(2)), share=0.5).gram is None


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    dissimilarity = from_gram(["a", "b"], np.eye(2))
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\)"):
        smooth(dissimilarity, dissimilarity, share)


@pytest.mark.parametrize(
    ("names", "matrix", "message"),
    [
        ([], np.zeros((0, 0)), "names: expected at least one, sorted and distinct, got"),
        (["b", "a"], np.eye(2), "names: expected at least one, sorted and distinct, got"),
        (["a", "a"], np.eye(2), "names: expected at least one, sorted and distinct, got"),
        (["a", "b"], np.eye(3), r"gram: expected shape \(2, 2\), .*, got \(3, 3\)"),
        (["a", "b"], np.array([[1.0, np.nan], [np.nan, 1.0]]), "the row of a is not finite"),
        (["a", "b"], np.array([[1.0, 0.5], [0.4, 1.0]]), "gram: expected a symmetric matrix"),
    ],
)
def test_what_is_no_relation_is_refused(names, matrix, message):
    with pytest.raises(ValueError, match=message):
        from_gram(names, matrix)


def rows_of(x, seed=0):
    return from_rows([f"{i:04}" for i in range(len(x))], x, seed=seed)


def pairwise(x):
    return ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)


def test_a_large_shared_start_does_not_drown_the_distances():
    draw = np.random.default_rng(0)
    x = (1000 * draw.normal(size=300) + 1e-2 * draw.normal(size=(8, 300))).astype(np.float32)
    np.testing.assert_allclose(pairwise(rows_of(x).points), pairwise(x.astype(float)), rtol=1e-8)


@pytest.mark.parametrize("features", [40, 2000])
def test_duplicates_among_many_rows_are_counted_once(features):
    # Two far groups, so that one direction holds nearly everything; 2 · 3 distinct rows, 100 times each.
    draw = np.random.default_rng(0)
    rows = np.concatenate([draw.normal(size=(3, features)) + offset for offset in (0.0, 1000.0)])
    assert rows_of(np.tile(rows, (100, 1)).astype(np.float32)).count_distinct(50) == 6


def test_the_matrix_is_read_in_blocks_not_copied(monkeypatch):
    monkeypatch.setattr(classical_scaling, "_BLOCK", 512)
    x = np.random.default_rng(0).standard_normal((50, 60_000), dtype=np.float32)
    tracemalloc.start()
    try:
        rows_of(x)
        random_projection(x, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The matrix has 12 MB; a block of it has 0.2 MB in fp64, and one of the projection 2 MB.
    assert peak < x.nbytes / 3


def test_cosine_by_hand():
    # (1, 0) and (1, 1): 1/√2; (1, 0) and (−2, 0): −1; (1, 1) and (−2, 0): −1/√2
    x = np.array([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    cosine = cosine_similarity(x @ x.T)
    h = 1 / np.sqrt(2)
    np.testing.assert_allclose(cosine, [[1, h, -1], [h, 1, -h], [-1, -h, 1]], atol=1e-12)


def test_cosine_of_a_zero_row_is_finite():
    # Inner products of (0, 0) and (3, 4).
    assert cosine_similarity(np.array([[0.0, 0.0], [0.0, 25.0]])).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_cosine_stays_in_range_and_symmetric():
    x = np.random.default_rng(0).normal(size=(5, 3))
    x = np.concatenate([x, x * 1e-3])
    cosine = cosine_similarity(x @ x.T)
    assert cosine.max() <= 1.0
    assert cosine.min() >= -1.0
    np.testing.assert_allclose(cosine, cosine.T, atol=1e-15)


def test_a_zero_row_among_others_is_told_from_rounding():
    # (0, 0) has inner product 1e-17 with itself after rounding.
    cosine = cosine_similarity(np.array([[1e-17, 1e-16], [1e-16, 1.0]]))
    assert cosine.tolist() == [[1.0, 0.0], [0.0, 1.0]]
