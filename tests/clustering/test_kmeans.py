import numpy as np
import pytest
from sklearn.cluster import KMeans

from fl_lightning.clustering.classical_scaling import gram_matrices, points_from_gram
from fl_lightning.clustering.kmeans import kmeans
from fl_lightning.clustering.partition import number_by_first_appearance


def blobs(n_centers, each, features, spread=0.05, seed=0):
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(n_centers, features)) * 4
    return np.concatenate([centers[c] + spread * draw.normal(size=(each, features)) for c in range(n_centers)])


def same_partition(first, second):
    return number_by_first_appearance(list(first)) == number_by_first_appearance(list(second))


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_kmeans_on_points_from_the_gram_matrix_is_kmeans_on_the_raw_matrix(k, seed):
    x = blobs(4, 3, 400, spread=0.3, seed=seed)
    labels, inertia = kmeans(points_from_gram(gram_matrices(x)[0]), k, seed=seed, n_init=20)
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
