import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from fl_lightning.clustering import n_clusters
from fl_lightning.clustering.dissimilarity import from_gram
from fl_lightning.clustering.federated import determine_optimal_clusters
from fl_lightning.clustering.n_clusters import SelectionInput, sharpest_bend
from fl_lightning.clustering.partition import number_by_first_appearance
from fl_lightning.clustering.registry import METHODS, SELECT, cluster

ALONE = ["elbow", "silhouette", "eigengap"]
TRUTH = [0, 1, 0, 2, 1, 2, 0]


def dissimilarity_of(x):
    x = np.asarray(x, dtype=float)
    return from_gram([f"d{i:02}" for i in range(len(x))], x @ x.T)


def selection_of(x, low=2, high=5, method="kmeans"):
    dissimilarity = dissimilarity_of(x)
    return SelectionInput(dissimilarity, lambda k: METHODS[method](dissimilarity, k, seed=0), low, high)


def directions(clusters=TRUTH, features=400, seed=0, noise=0.5):
    draw = np.random.default_rng(seed)
    centers = draw.standard_normal((max(clusters) + 1, features))
    x = centers[clusters] + noise * draw.standard_normal((len(clusters), features))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("select", ALONE)
@pytest.mark.parametrize("clusters", [TRUTH, [0, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
def test_planted_clusters_are_found(select, method, clusters):
    result = cluster(dissimilarity_of(directions(clusters)), method=method, select=select, seed=0)
    assert list(result.assignments.values()) == number_by_first_appearance(clusters)


@pytest.mark.parametrize("select", [*ALONE, "fixed"])
def test_identical_departments_are_one_cluster(select):
    assert SELECT[select](selection_of(np.ones((6, 3)))).n_clusters == 1


@pytest.mark.parametrize("select", [*ALONE, "fixed"])
def test_the_answer_lies_between_the_bounds(select):
    x = directions(list(range(8)))
    for low, high in [(3, 3), (2, 4), (4, 6), (9, 12)]:
        assert min(low, 8) <= SELECT[select](selection_of(x, low, high)).n_clusters <= min(high, 8)


@pytest.mark.parametrize("select", [*ALONE, "fixed"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_departments_will_do(select, n):
    assert 1 <= SELECT[select](selection_of(directions(list(range(n))))).n_clusters <= n


def test_elbow_is_that_of_k_means():
    x = directions(noise=1.0)
    result = n_clusters.elbow(selection_of(x))
    k, inertias = determine_optimal_clusters(x, seed=0)
    assert result.n_clusters == k
    np.testing.assert_allclose(list(result.scores.values()), list(inertias.values()), atol=1e-9)


def test_silhouette_scores_are_scikit_learns_on_points():
    x = directions(noise=1.5)
    selection = selection_of(x)
    for k, score in n_clusters.silhouette(selection).scores.items():
        assert score == pytest.approx(silhouette_score(x, selection.labels(k)))


def test_mean_silhouette_is_zero_by_convention_for_one_cluster_and_for_loners():
    assert n_clusters.mean_silhouette(dissimilarity_of(np.eye(3)), [0, 0, 0]) == 0
    assert n_clusters.mean_silhouette(dissimilarity_of(np.eye(3)), [0, 1, 2]) == 0


def test_silhouette_takes_the_smaller_number_on_a_tie():
    # two far pairs of equal points at k = 2, and a square's corners apart: all four silhouettes are 0 at k = n
    assert n_clusters.silhouette(selection_of(np.eye(4), 2, 4)).n_clusters == 2


def test_eigenvalues_near_zero_count_loose_clusters():
    blocks = np.kron(np.eye(3), np.ones((2, 2)))
    np.testing.assert_allclose(n_clusters.laplacian_eigenvalues(blocks), [0, 0, 0, 1, 1, 1], atol=1e-12)


def test_eigengap_says_one_where_all_are_alike():
    x = 1 + 0.1 * np.random.default_rng(0).standard_normal((6, 50))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert n_clusters.eigengap(selection_of(x, 1, 4)).n_clusters == 1


def test_fixed_is_the_smallest_allowed():
    assert n_clusters.fixed(selection_of(directions(), 3, 5)).n_clusters == 3


def test_bounds_out_of_order_are_refused():
    with pytest.raises(
        ValueError, match="expected 1 ≤ min_clusters ≤ max_clusters, got min_clusters 3, max_clusters 2"
    ):
        selection_of(np.eye(3), 3, 2)
    with pytest.raises(ValueError, match="got min_clusters 0"):
        selection_of(np.eye(3), 0, 2)


def test_the_bend_answers_three_where_the_bend_is_at_three():
    # second differences: k=2: 100−120+10 = −10; k=3: 60−20+8 = 48; k=4: 10−16+7 = 1
    assert sharpest_bend({1: 100.0, 2: 60.0, 3: 10.0, 4: 8.0, 5: 7.0}, 2, 4) == 3


def test_the_bend_answers_four_where_the_bend_is_at_four():
    # k=2: 100−160+60 = 0; k=3: 80−120+5 = −35; k=4: 60−10+4 = 54; k=5: 5−8+3 = 0
    assert sharpest_bend({1: 100.0, 2: 80.0, 3: 60.0, 4: 5.0, 5: 4.0, 6: 3.0}, 2, 5) == 4


def test_the_bend_can_answer_its_smallest_and_its_largest_k():
    # k=2: 100−20+9 = 89 is the largest.
    assert sharpest_bend({1: 100.0, 2: 10.0, 3: 9.0, 4: 8.0, 5: 7.0, 6: 6.0}, 2, 5) == 2
    # k=5: 70−0+0 = 70; k=4: 80−140+0 = −60; k=2 and 3: 0.
    assert sharpest_bend({1: 100.0, 2: 90.0, 3: 80.0, 4: 70.0, 5: 0.0, 6: 0.0}, 2, 5) == 5


def test_the_bend_is_not_the_second_difference_that_starts_at_min_clusters():
    # np.diff([I2…I6], 2) + 2 reads the bend at 3 as 2 and never sees the bend at 2.
    inertias = {1: 100.0, 2: 60.0, 3: 10.0, 4: 8.0, 5: 7.0, 6: 6.0}
    shifted = int(np.argmax(np.diff([inertias[k] for k in range(2, 7)], 2))) + 2
    assert shifted == 2
    assert sharpest_bend(inertias, 2, 5) == 3


def test_the_bend_stays_within_its_bounds():
    # The largest bend, at 2 (100−20+9 = 89), is out of bounds; k=3: 10−18+8 = 0; k=4: 9−16+2 = −5; k=5: 8−4+1 = 5.
    assert sharpest_bend({1: 100.0, 2: 10.0, 3: 9.0, 4: 8.0, 5: 2.0, 6: 1.0}, 3, 5) == 5


def test_the_bend_takes_the_smallest_k_on_a_tie():
    # k=2: 30−40+10 = 0; k=3: 20−20+0 = 0
    assert sharpest_bend({1: 30.0, 2: 20.0, 3: 10.0, 4: 0.0}, 2, 3) == 2


def test_the_bend_without_any_second_difference_answers_min_clusters():
    assert sharpest_bend({1: 5.0, 2: 0.0}, 2, 5) == 2
    assert sharpest_bend({1: 5.0}, 2, 5) == 1
