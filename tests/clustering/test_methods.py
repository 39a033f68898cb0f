import warnings

import numpy as np
import pytest

from fl_lightning.clustering import methods
from fl_lightning.clustering.dissimilarity import from_dissimilarity, from_gram
from fl_lightning.clustering.registry import METHODS

EACH = pytest.mark.parametrize("method", list(METHODS.values()), ids=list(METHODS))


def dissimilarity_of(x):
    x = np.asarray(x, dtype=float)
    return from_gram([f"d{i:02}" for i in range(len(x))], x @ x.T)


def blobs(seed=0):
    centers = 8 * np.eye(3)[[0, 1, 0, 2, 1, 2, 0]]
    return dissimilarity_of(centers + np.random.default_rng(seed).standard_normal((7, 3)) * 0.3)


@EACH
def test_blobs_are_found_and_numbered_by_first_appearance(method):
    assert method(blobs(), 3, seed=0).labels == [0, 1, 0, 2, 1, 2, 0]


@EACH
def test_a_seed_decides(method):
    x = dissimilarity_of(np.random.default_rng(3).standard_normal((12, 4)))
    assert method(x, 4, seed=7) == method(x, 4, seed=7)


@EACH
def test_identical_departments_are_one_cluster(method):
    assert method(dissimilarity_of(np.ones((5, 3))), 3, seed=0).labels == [0] * 5


@EACH
def test_never_more_clusters_than_distinct_departments(method):
    labels, inertia = method(dissimilarity_of([[0.0, 1.0], [5.0, 1.0], [0.0, 1.0], [5.0, 1.0]]), 4, seed=0)
    assert (labels, inertia) == ([0, 1, 0, 1], 0.0)


@EACH
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_k_up_to_n_works_without_a_warning(method, n):
    x = dissimilarity_of(np.random.default_rng(n).standard_normal((n, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(1, n + 2):
            assert len(set(method(x, k, seed=0).labels)) == min(k, n)


@EACH
def test_distances_without_a_kernel_will_do(method):
    d = np.array([[0, 1, 9, 9], [1, 0, 9, 8], [9, 9, 0, 1], [9, 8, 1, 0]], dtype=float)
    assert method(from_dissimilarity(list("abcd"), d), 2, seed=0).labels == [0, 0, 1, 1]


@EACH
def test_no_clusters_are_refused(method):
    with pytest.raises(ValueError, match="k: expected at least 1 cluster, got 0"):
        method(blobs(), 0, seed=0)


def test_average_linkage_takes_the_mean_distance():
    # c is at 4 from a and 7 from b (mean 5.5), and at 5 from d: it joins d; nearest neighbours alone would take a.
    d = np.array([[0, 1, 4, 9], [1, 0, 7, 9], [4, 7, 0, 5], [9, 9, 5, 0]], dtype=float)
    assert methods.agglomerative(from_dissimilarity(list("abcd"), d**2 / 2), 2).labels == [0, 0, 1, 1]


def test_affinity_is_the_cosine_floored_or_falls_with_distance():
    cosines = np.array([[1.0, -0.5, 0.3], [-0.5, 1.0, 0.0], [0.3, 0.0, 1.0]])
    result = methods.affinity(from_gram(list("abc"), cosines))
    np.testing.assert_allclose(result, [[1, 1e-6, 0.3], [1e-6, 1, 1e-6], [0.3, 1e-6, 1]])
    d = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0]], dtype=float)
    np.testing.assert_allclose(methods.affinity(from_dissimilarity(list("abc"), d)), np.exp(-d / 2))


def test_affinity_is_defined_where_most_distances_are_zero():
    assert np.isfinite(methods.affinity(from_dissimilarity(["a"], np.zeros((1, 1))))).all()
    d = np.array([[0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 0, 5], [5, 5, 5, 0]], dtype=float)
    assert np.isfinite(methods.affinity(from_dissimilarity(list("abcd"), d))).all()
    assert methods.affinity(from_gram(["a", "b"], np.zeros((2, 2)))).tolist() == [[1, 1e-6], [1e-6, 1]]
