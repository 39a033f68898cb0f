import logging
import math
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fl_lightning.clustering import kmeans as module
from fl_lightning.clustering.kmeans import (
    cluster_rows,
    count_distinct,
    determine_optimal_clusters,
    elbow,
    exact_reduction,
    gram_matrices,
    kmeans,
    number_by_first_appearance,
    points_from_gram,
    reduce_rows,
    sketch,
    sketch_size,
)


def blobs(centers, each, features, spread=0.05, seed=0):
    draw = np.random.default_rng(seed)
    middle = draw.normal(size=(centers, features)) * 4
    return np.concatenate([middle[c] + spread * draw.normal(size=(each, features)) for c in range(centers)])


def pairwise(x):
    return ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)


def same_partition(first, second):
    return number_by_first_appearance(list(first)) == number_by_first_appearance(list(second))


@pytest.mark.parametrize("shape", [(6, 500), (6, 3), (4, 4), (1, 9), (2, 1)])
def test_reduction_keeps_all_pairwise_distances(shape):
    x = np.random.default_rng(1).normal(size=shape) + 7
    reduced = exact_reduction(x)
    assert reduced.shape[1] <= min(shape) or reduced.shape[1] == 1
    np.testing.assert_allclose(pairwise(reduced), pairwise(x), rtol=1e-9, atol=1e-9)


def test_points_from_a_gram_matrix_have_these_inner_products():
    # Rank 2 of three points (1,0), (0,2), (1,2).
    gram = np.array([[1.0, 0.0, 1.0], [0.0, 4.0, 4.0], [1.0, 4.0, 5.0]])
    points = points_from_gram(gram)
    assert points.shape[0] == 3
    np.testing.assert_allclose(points @ points.T, gram, atol=1e-12)


def test_points_of_a_zero_gram_matrix_are_zero():
    assert np.array_equal(points_from_gram(np.zeros((3, 3))), np.zeros((3, 1)))


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_kmeans_on_the_reduction_is_kmeans_on_the_raw_matrix(k, seed):
    x = blobs(4, 3, 400, spread=0.3, seed=seed)
    labels, inertia = kmeans(exact_reduction(x), k, seed=seed, n_init=20)
    raw = KMeans(k, n_init=20, random_state=seed).fit(x)
    assert same_partition(labels, raw.labels_)
    assert inertia == pytest.approx(raw.inertia_, rel=1e-6)


def test_one_cluster_has_the_total_scatter():
    # Points 0, 1, 5: mean 2, scatter 4 + 1 + 9 = 14.
    labels, inertia = kmeans(np.array([[0.0], [1.0], [5.0]]), 1, seed=0)
    assert labels.tolist() == [0, 0, 0]
    assert inertia == pytest.approx(14.0)


def test_as_many_clusters_as_points_have_no_inertia():
    labels, inertia = kmeans(np.array([[0.0], [1.0], [5.0]]), 3, seed=0)
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert inertia == 0.0


def test_kmeans_repeats_with_its_seed():
    x = np.random.default_rng(3).normal(size=(12, 5))
    first, second = kmeans(x, 4, seed=11, n_init=1), kmeans(x, 4, seed=11, n_init=1)
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_elbow_answers_three_where_the_bend_is_at_three():
    # second differences: k=2: 100−120+10 = −10; k=3: 60−20+8 = 48; k=4: 10−16+7 = 1
    assert elbow({1: 100.0, 2: 60.0, 3: 10.0, 4: 8.0, 5: 7.0}, 2, 4) == 3


def test_elbow_answers_four_where_the_bend_is_at_four():
    # k=2: 100−160+60 = 0; k=3: 80−120+5 = −35; k=4: 60−10+4 = 54; k=5: 5−8+3 = 0
    assert elbow({1: 100.0, 2: 80.0, 3: 60.0, 4: 5.0, 5: 4.0, 6: 3.0}, 2, 5) == 4


def test_elbow_can_answer_its_smallest_and_its_largest_k():
    # k=2: 100−20+9 = 89 is the largest.
    assert elbow({1: 100.0, 2: 10.0, 3: 9.0, 4: 8.0, 5: 7.0, 6: 6.0}, 2, 5) == 2
    # k=5: 70−0+0 = 70; k=4: 80−140+0 = −60; k=2 and 3: 0.
    assert elbow({1: 100.0, 2: 90.0, 3: 80.0, 4: 70.0, 5: 0.0, 6: 0.0}, 2, 5) == 5


def test_elbow_is_not_the_second_difference_that_starts_at_min_clusters():
    # np.diff([I2…I6], 2) + 2 reads the bend at 3 as 2 and never sees the bend at 2.
    inertias = {1: 100.0, 2: 60.0, 3: 10.0, 4: 8.0, 5: 7.0, 6: 6.0}
    shifted = int(np.argmax(np.diff([inertias[k] for k in range(2, 7)], 2))) + 2
    assert shifted == 2
    assert elbow(inertias, 2, 5) == 3


def test_elbow_stays_within_its_bounds():
    # The largest bend, at 2 (100−20+9 = 89), is out of bounds; k=3: 10−18+8 = 0; k=4: 9−16+2 = −5; k=5: 8−4+1 = 5.
    assert elbow({1: 100.0, 2: 10.0, 3: 9.0, 4: 8.0, 5: 2.0, 6: 1.0}, 3, 5) == 5


def test_elbow_takes_the_smallest_k_on_a_tie():
    # k=2: 30−40+10 = 0; k=3: 20−20+0 = 0
    assert elbow({1: 30.0, 2: 20.0, 3: 10.0, 4: 0.0}, 2, 3) == 2


def test_elbow_without_any_second_difference_answers_min_clusters():
    assert elbow({1: 5.0, 2: 0.0}, 2, 5) == 2
    assert elbow({1: 5.0}, 2, 5) == 1


@pytest.mark.parametrize("true_k", [2, 3, 4, 5])
def test_the_number_of_well_separated_groups_is_found(true_k):
    # Equidistant groups: corners of a simplex, so that inertia falls in equal steps down to true_k.
    x = np.repeat(np.eye(true_k, 40) * 10, 3, axis=0)
    x = x + 0.01 * np.random.default_rng(0).normal(size=x.shape)
    assert determine_optimal_clusters(x, seed=0)[0] == true_k


def test_four_departments_can_have_three_clusters():
    # A pair and two loners, all far apart and equidistant.
    x = np.array([[10.0, 0.0, 0.0], [10.1, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]])
    assert determine_optimal_clusters(x, seed=0)[0] == 3


def test_inertias_run_from_one_to_max_plus_one():
    x = np.random.default_rng(0).normal(size=(9, 4))
    _, inertias = determine_optimal_clusters(x, 2, 5, seed=0)
    assert list(inertias) == [1, 2, 3, 4, 5, 6]
    assert list(inertias.values()) == sorted(inertias.values(), reverse=True)


def test_inertias_are_clamped_to_the_number_of_rows():
    _, inertias = determine_optimal_clusters(np.array([[0.0], [1.0], [5.0]]), seed=0)
    # k=1: scatter 14; k=2: {0, 1} and {5} leave 2 · 0.5² = 0.5; k=3: 0
    assert inertias == {1: pytest.approx(14.0), 2: pytest.approx(0.5), 3: 0.0}


@pytest.mark.parametrize("shape", [(4, 1), (4, 1000), (7, 3)])
def test_identical_rows_are_one_cluster(shape):
    x = np.tile(np.random.default_rng(0).normal(size=shape[1]), (shape[0], 1))
    assert determine_optimal_clusters(x, seed=0)[0] == 1


def test_all_zero_rows_are_one_cluster():
    assert determine_optimal_clusters(np.zeros((4, 6)), seed=0)[0] == 1


@pytest.mark.parametrize("features", [2, 300])
def test_never_more_clusters_than_distinct_rows(features):
    two = np.random.default_rng(0).normal(size=(2, features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        n_clusters, inertias = determine_optimal_clusters(np.repeat(two, 4, axis=0), 3, 5, seed=0)
    assert n_clusters == 2
    assert inertias[2] == 0.0


def test_a_single_row_is_one_cluster():
    assert determine_optimal_clusters(np.ones((1, 5)), seed=0) == (1, {1: 0.0})


def test_two_distinct_rows_are_two_clusters_under_min_two():
    assert determine_optimal_clusters(np.array([[0.0], [1.0]]), seed=0)[0] == 2


@pytest.mark.parametrize(
    "x", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan]]), np.array([[np.inf, 0.0], [0.0, 0.0]])]
)
def test_x_that_is_no_finite_matrix_is_refused(x):
    with pytest.raises(ValueError) as caught:
        determine_optimal_clusters(x, seed=0)
    assert f"got shape {x.shape}, wanted a finite (n, d) matrix" in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3), (-1, -1)])
def test_bounds_out_of_order_are_refused(low, high):
    with pytest.raises(ValueError, match=f"got min_clusters {low}, max_clusters {high}; wanted 1 ≤ min ≤ max"):
        determine_optimal_clusters(np.eye(4), low, high, seed=0)


def test_distinct_points_are_counted_up_to_rounding():
    points = np.array([[0.0], [1e-9], [1.0], [1.0 + 1e-9], [2.0]])
    assert count_distinct(points, scale=4.0) == 3


def test_points_that_differ_by_more_than_fp32_rounding_are_distinct():
    assert count_distinct(np.array([[1.0], [1.00001]]), scale=1.0) == 2


def test_labels_are_numbered_by_first_appearance():
    assert number_by_first_appearance(np.array([4, 4, 0, 2, 0, 9])) == [0, 0, 1, 2, 1, 3]


@given(st.lists(st.integers(-5, 5)))
def test_numbering_is_idempotent_and_keeps_the_partition(labels):
    new = number_by_first_appearance(labels)
    assert number_by_first_appearance(new) == new
    assert len(set(zip(labels, new, strict=True))) == len(set(labels)) == len(set(new))
    assert new[:1] == [0][: len(new)]
    assert all(later <= max(new[:i], default=-1) + 1 for i, later in enumerate(new))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 12))
def test_answer_is_within_bounds_and_at_most_the_distinct_rows(seed, rows, features):
    x = np.random.default_rng(seed).integers(0, 3, size=(rows, features)).astype(float)
    n_clusters, _ = determine_optimal_clusters(x, 2, 4, seed=0, n_init=2)
    distinct = len(np.unique(x, axis=0))
    assert min(2, distinct) <= n_clusters <= min(4, distinct)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 30))
def test_reduction_keeps_distances_of_any_matrix(seed, rows, features):
    x = np.random.default_rng(seed).normal(size=(rows, features))
    np.testing.assert_allclose(pairwise(exact_reduction(x)), pairwise(x), rtol=1e-8, atol=1e-9)


def test_gram_matrices_by_hand():
    # Rows (1, 2), (3, 6): mean (2, 4), centred (−1, −2), (1, 2); their products are ±5.
    centred, raw = gram_matrices(np.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_allclose(centred, [[5, -5], [-5, 5]])
    np.testing.assert_allclose(raw, [[5, 15], [15, 45]])


def test_gram_matrices_are_those_of_the_whole_matrix_in_fp64(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    x = (np.random.default_rng(0).normal(size=(9, 50)) + 3).astype(np.float32)
    centred, raw = gram_matrices(x)
    wide = x.astype(np.float64)
    wide_centred = wide - wide.mean(axis=0)
    np.testing.assert_allclose(raw, wide @ wide.T, rtol=1e-12)
    np.testing.assert_allclose(centred, wide_centred @ wide_centred.T, atol=1e-12)
    assert np.array_equal(centred, centred.T)
    assert np.array_equal(raw, raw.T)


def test_a_large_shared_start_does_not_drown_the_distances():
    draw = np.random.default_rng(0)
    x = (1000 * draw.normal(size=300) + 1e-2 * draw.normal(size=(8, 300))).astype(np.float32)
    np.testing.assert_allclose(pairwise(reduce_rows(x, limit=8, seed=0).points), pairwise(x.astype(float)), rtol=1e-8)


def test_every_inertia_is_that_of_scikit_learn_on_the_raw_matrix():
    x = blobs(4, 30, 600, spread=2.0).astype(np.float32)
    n_clusters, inertias = determine_optimal_clusters(x, seed=0)
    raw = {k: KMeans(k, n_init=10, random_state=0).fit(x.astype(np.float64)).inertia_ for k in range(1, 7)}
    assert n_clusters == elbow(raw, 2, 5) == 4
    for k, inertia in inertias.items():
        assert inertia <= raw[k] * (1 + 1e-6) if k > 4 else inertia == pytest.approx(raw[k], rel=1e-9)


@pytest.mark.parametrize("shape", [(8, 500), (8, 4)])
def test_one_reduction_and_one_kmeans_for_each_k(monkeypatch, shape):
    calls = []
    for name in ("gram_matrices", "kmeans"):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, inner=inner, name=name, **k: calls.append(name) or inner(*a, **k))
    found = cluster_rows(np.random.default_rng(0).normal(size=shape), 2, 5, seed=0)
    assert calls == ["gram_matrices"] + ["kmeans"] * 6
    assert len(set(found.labels.tolist())) == found.n_clusters


def test_labels_are_those_of_the_chosen_number():
    x = blobs(3, 4, 100)
    found = cluster_rows(x, 2, 5, seed=0)
    assert found.n_clusters == 3
    assert same_partition(found.labels, np.repeat([0, 1, 2], 4))


def naive_distinct(points, bound):
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
    wanted = naive_distinct(points, 1.5)
    assert count_distinct(points, scale=1.5, same=1.0) == wanted
    assert count_distinct(points, scale=1.5, same=1.0, limit=3) == min(wanted, 3)


@pytest.mark.parametrize("features", [40, 2000])
def test_duplicates_among_many_rows_are_counted_once(features):
    # Two far groups, so that one direction holds nearly everything; 2 · 3 distinct rows, 100 times each.
    draw = np.random.default_rng(0)
    rows = np.concatenate([draw.normal(size=(3, features)) + offset for offset in (0.0, 1000.0)])
    assert reduce_rows(np.tile(rows, (100, 1)).astype(np.float32), limit=50, seed=0).distinct == 6


def test_the_matrix_is_read_in_blocks_not_copied(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 512)
    x = np.random.default_rng(0).standard_normal((50, 60_000), dtype=np.float32)
    tracemalloc.start()
    try:
        reduce_rows(x, limit=7, seed=0)
        sketch(x, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The matrix has 12 MB; a block of it has 0.2 MB in fp64, and one of the projection 2 MB.
    assert peak < x.nbytes / 3


def test_infinity_in_the_last_block_is_refused():
    x = np.zeros((3, 5000), dtype=np.float32)
    x[1, -1] = np.inf
    with pytest.raises(ValueError, match=r"got shape \(3, 5000\), wanted a finite \(n, d\) matrix"):
        determine_optimal_clusters(x, seed=0)


def test_sketch_size_keeps_the_stated_probability():
    # eps = 1/4: eps²/2 − eps³/3 = 5/192; 2 · 192/5 · ln(10⁴ · 9999 / 0.01) = 76.8 · 23.0258 = 1768.4
    assert (module.SKETCH_ERROR, module.SKETCH_FAILURE) == (0.25, 0.01)
    assert sketch_size(10_000) == 1769
    n, m = 300, sketch_size(300)
    assert n * (n - 1) / 2 * 2 * math.exp(-m * 5 / 192 / 2) <= 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_sketch_keeps_squared_distances_within_the_stated_error(seed):
    x = np.random.default_rng(seed).standard_normal((60, 5000), dtype=np.float32)
    x[:30, :10] += 20  # few features hold most of the distance between halves
    others = ~np.eye(60, dtype=bool)
    points = sketch(x, seed=seed)
    assert points.shape == (60, sketch_size(60))
    # |a − b|² = |a|² + |b|² − 2 a·b
    exact, near = (
        (p**2).sum(1)[:, None] + (p**2).sum(1) - 2 * p @ p.T for p in (x.astype(float), points.astype(float))
    )
    assert np.abs(near[others] / exact[others] - 1).max() <= module.SKETCH_ERROR


def test_a_sketch_repeats_with_its_seed():
    x = np.random.default_rng(0).normal(size=(5, 3000))
    assert np.array_equal(sketch(x, seed=3), sketch(x, seed=3))
    assert not np.array_equal(sketch(x, seed=3), sketch(x, seed=4))


def test_many_rows_are_clustered_on_a_sketch(monkeypatch, caplog):
    x = blobs(3, 10, 4000, spread=1.0).astype(np.float32)
    exact, exact_inertias = determine_optimal_clusters(x, seed=0)
    monkeypatch.setattr(module, "EXACT_ROWS", 20)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        found = cluster_rows(x, 2, 5, seed=0)
    wanted = f"clustering 30 rows on a sketch, 4000 features → {sketch_size(30)}: squared distances within 1 ± 0.25"
    assert wanted in caplog.text
    assert found.n_clusters == exact == 3
    assert same_partition(found.labels, np.repeat([0, 1, 2], 10))
    assert found.reduction.gram is None
    for k in range(1, 4):
        assert found.inertias[k] == pytest.approx(exact_inertias[k], rel=0.25)


def test_identical_rows_are_one_cluster_on_a_sketch_too(monkeypatch):
    monkeypatch.setattr(module, "EXACT_ROWS", 20)
    two = np.random.default_rng(0).standard_normal((2, 3000), dtype=np.float32) + 5
    assert determine_optimal_clusters(np.tile(two[:1], (41, 1)), seed=0)[0] == 1
    assert determine_optimal_clusters(np.tile(two, (41, 1)), 3, 5, seed=0)[0] == 2


def test_many_rows_of_few_features_need_no_sketch(monkeypatch, caplog):
    monkeypatch.setattr(module, "EXACT_ROWS", 20)
    x = blobs(3, 10, 5)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        found = cluster_rows(x, 2, 5, seed=0)
    assert "sketch" not in caplog.text
    np.testing.assert_allclose(pairwise(found.reduction.points), pairwise(x), rtol=1e-9, atol=1e-12)
