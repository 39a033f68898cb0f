import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from fl_lightning.clustering import n_clusters
from fl_lightning.clustering.kmeans import cluster_rows, number_by_first_appearance
from fl_lightning.clustering.registry import METHODS, SELECT, Problem, from_gram, group

ALONE = ["elbow", "silhouette", "eigengap"]
TRUTH = [0, 1, 0, 2, 1, 2, 0]


def relation_of(x):
    x = np.asarray(x, dtype=float)
    return from_gram([f"d{i:02}" for i in range(len(x))], x @ x.T)


def problem(x, low=2, high=5, method="kmeans"):
    relation = relation_of(x)
    return Problem(relation, lambda k: METHODS[method](relation, k, seed=0), low, high)


def directions(clusters=TRUTH, features=400, seed=0, noise=0.5):
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((max(clusters) + 1, features))
    x = centres[clusters] + noise * draw.standard_normal((len(clusters), features))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("select", ALONE)
@pytest.mark.parametrize("clusters", [TRUTH, [0, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
def test_planted_clusters_are_found(select, method, clusters):
    found = group(relation_of(directions(clusters)), method=method, select=select, seed=0)
    assert list(found.assignments.values()) == number_by_first_appearance(clusters)


@pytest.mark.parametrize("select", [*ALONE, "fixed"])
def test_identical_departments_are_one_cluster(select):
    assert SELECT[select](problem(np.ones((6, 3)))).n_clusters == 1


@pytest.mark.parametrize("select", [*ALONE, "fixed"])
def test_the_answer_lies_between_the_bounds(select):
    x = directions(list(range(8)))
    for low, high in [(3, 3), (2, 4), (4, 6), (9, 12)]:
        assert min(low, 8) <= SELECT[select](problem(x, low, high)).n_clusters <= min(high, 8)


@pytest.mark.parametrize("select", [*ALONE, "fixed"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_departments_will_do(select, n):
    assert 1 <= SELECT[select](problem(directions(list(range(n))))).n_clusters <= n


def test_elbow_is_that_of_k_means():
    x = directions(noise=1.0)
    found = n_clusters.elbow(problem(x))
    wanted = cluster_rows(x, 2, 5, seed=0)
    assert found.n_clusters == wanted.n_clusters
    np.testing.assert_allclose(list(found.scores.values()), list(wanted.inertias.values()), atol=1e-9)


def test_silhouette_scores_are_scikit_learns_on_points():
    x = directions(noise=1.5)
    given = problem(x)
    for k, score in n_clusters.silhouette(given).scores.items():
        assert score == pytest.approx(silhouette_score(x, given.label(k)))


def test_mean_silhouette_is_zero_by_convention_for_one_cluster_and_for_loners():
    assert n_clusters.mean_silhouette(relation_of(np.eye(3)), [0, 0, 0]) == 0
    assert n_clusters.mean_silhouette(relation_of(np.eye(3)), [0, 1, 2]) == 0


def test_silhouette_takes_the_smaller_number_on_a_tie():
    # two far pairs of equal points at k = 2, and a square's corners apart: all four silhouettes are 0 at k = n
    assert n_clusters.silhouette(problem(np.eye(4), 2, 4)).n_clusters == 2


def test_eigenvalues_near_zero_count_loose_clusters():
    blocks = np.kron(np.eye(3), np.ones((2, 2)))
    np.testing.assert_allclose(n_clusters.laplacian_eigenvalues(blocks), [0, 0, 0, 1, 1, 1], atol=1e-12)


def test_eigengap_says_one_where_all_are_alike():
    x = 1 + 0.1 * np.random.default_rng(0).standard_normal((6, 50))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert n_clusters.eigengap(problem(x, 1, 4)).n_clusters == 1


def test_fixed_is_the_smallest_allowed():
    assert n_clusters.fixed(problem(directions(), 3, 5)).n_clusters == 3


def test_bounds_out_of_order_are_refused():
    with pytest.raises(ValueError, match="got min_clusters 3, max_clusters 2; wanted 1 ≤ min ≤ max"):
        problem(np.eye(3), 3, 2)
    with pytest.raises(ValueError, match="got min_clusters 0"):
        problem(np.eye(3), 0, 2)
