import numpy as np
import pytest

from fl_lightning.clustering.dissimilarity import from_dissimilarity, from_gram
from fl_lightning.clustering.dynamic import adjusted_share, dynamic, separation, squared_distances
from fl_lightning.clustering.methods import Labels
from fl_lightning.clustering.n_clusters import SelectionInput
from fl_lightning.clustering.partition import number_by_first_appearance
from fl_lightning.clustering.registry import METHODS, cluster
from fl_lightning.clustering.sums_of_squares import DepartmentClients


def answers(federation, clusters, n_clients, times, *, seed=0, draws=199, options=None, **kind):
    """(share of the right partition, share of more than one cluster) over some federations."""
    draw, right, more = np.random.default_rng(seed), 0, 0
    for i in range(times):
        dissimilarity, clients = federation(draw, clusters, n_clients, **kind)
        result = cluster(dissimilarity, select="dynamic", clients=clients, seed=i, draws=draws, **(options or {}))
        right += list(result.assignments.values()) == number_by_first_appearance(clusters)
        more += result.n_clusters > 1
    return right / times, more / times


@pytest.mark.parametrize(("departments", "n_clients"), [(4, 3), (6, 2)])
@pytest.mark.parametrize("rank", [0, 3])
def test_one_pool_is_one_cluster(federation, departments, n_clients, rank):
    _, wrong = answers(federation, [0] * departments, n_clients, 200, signal=0, rank=rank)
    assert wrong <= 0.08


def test_one_pool_of_clients_that_count_differently_is_one_cluster(federation):
    weights = [1, 10, 100] * 4
    _, wrong = answers(federation, [0] * 4, 3, 100, signal=0, weights=weights)
    assert wrong <= 0.08


@pytest.mark.parametrize(
    ("clusters", "n_clients"),
    [([0, 0, 1, 1], 3), ([0, 0, 1, 2], 3), ([0, 1, 2, 3], 3), ([0, 0, 1, 1, 2, 2], 2), ([0, 0, 0, 1, 1, 2], 3)],
)
def test_planted_clusters_are_found(federation, clusters, n_clients):
    # cosines of clients of one cluster are above those of strangers by 0.04, at a noise of 1 / sqrt(1000) = 0.03
    right, _ = answers(federation, clusters, n_clients, 20, signal=0.4)
    assert right >= 0.85


@pytest.mark.parametrize("method", METHODS)
def test_methods_agree_on_what_is_plain(federation, method):
    dissimilarity, clients = federation(np.random.default_rng(0), [0, 1, 0, 2], 3, signal=1.0)
    result = cluster(dissimilarity, method=method, select="dynamic", clients=clients, seed=0)
    assert result.assignments == {"d00": 0, "d01": 1, "d02": 0, "d03": 2}
    assert all(result.p_values[k] <= 0.03 for k in (1, 2))


def test_what_differs_surely_but_little_is_one_cluster_at_coarse_separation(federation):
    # departments of a cluster are apart by 0.3² of what clusters are: seen with 8 clients each, not worth a cluster
    kind = {"signal": 1.0, "own": 0.3, "options": {"min_separation": 0.67}}
    assert answers(federation, [0, 0, 1, 2], 8, 5, **kind)[0] == 1
    result, clients = federation(np.random.default_rng(0), [0, 0, 1, 2], 8, signal=1.0, own=0.3)
    assert cluster(result, select="dynamic", clients=clients, seed=0, min_separation=0).n_clusters == 4


def test_many_departments_of_many_clients_are_no_trouble(federation):
    clusters = [i % 5 for i in range(40)]  # more ways to deal 400 clients than a float holds
    dissimilarity, clients = federation(np.random.default_rng(0), clusters, 10, signal=0.5)
    result = cluster(dissimilarity, select="dynamic", max_clusters=6, clients=clients, seed=0, draws=49)
    assert list(result.assignments.values()) == clusters


def test_bounds_hold_where_there_is_structure(federation):
    dissimilarity, clients = federation(np.random.default_rng(0), [0, 0, 1, 2], 3, signal=1.0)

    def count(low, high):
        bounds = {"min_clusters": low, "max_clusters": high}
        return cluster(dissimilarity, select="dynamic", clients=clients, seed=0, **bounds).n_clusters

    assert [count(1, 5), count(1, 2), count(4, 5), count(1, 1)] == [3, 2, 4, 1]


def test_one_cluster_may_be_the_answer_below_the_smallest_number(federation):
    dissimilarity, clients = federation(np.random.default_rng(3), [0, 0, 0, 0], 3, signal=0)
    result = cluster(dissimilarity, select="dynamic", min_clusters=2, clients=clients, seed=0)
    assert result.n_clusters == 1
    assert result.assignments == dict.fromkeys(dissimilarity.names, 0)
    assert result.p_values[1] > 0.03


def test_identical_clients_are_one_cluster():
    names = [f"{d}/{c}" for d in "abcd" for c in range(3)]
    clients = DepartmentClients(from_gram(names, np.ones((12, 12))), {name: name[0] for name in names})
    dissimilarity = from_gram(list("abcd"), np.ones((4, 4)))
    assert cluster(dissimilarity, select="dynamic", clients=clients, seed=0).n_clusters == 1


def test_too_few_clients_to_tell_is_one_cluster_and_told(federation, caplog):
    dissimilarity, clients = federation(np.random.default_rng(0), [0, 1], 3, signal=2.0)
    with caplog.at_level("INFO", logger="fl_lightning"):
        assert cluster(dissimilarity, select="dynamic", clients=clients, seed=0).n_clusters == 1
    assert "only 10 ways to assign clients to departments" in caplog.text


def test_a_seed_decides(federation):
    dissimilarity, clients = federation(np.random.default_rng(5), [0, 0, 1, 1], 3, signal=0.2)
    first, second = (cluster(dissimilarity, select="dynamic", clients=clients, seed=4) for _ in range(2))
    np.testing.assert_equal(vars(first), vars(second))


def test_clients_related_by_distances_alone_will_do(federation):
    dissimilarity, clients = federation(np.random.default_rng(0), [0, 0, 1, 1], 3, signal=1.0)
    bare = from_dissimilarity(clients.dissimilarity.names, clients.dissimilarity.dissimilarity)
    result = cluster(dissimilarity, select="dynamic", clients=DepartmentClients(bare, clients.department_of), seed=0)
    assert list(result.assignments.values()) == [0, 0, 1, 1]


def line(*positions):
    """Two clients a department, at ± 1 around each position."""
    x = np.array([[p + s] for p in positions for s in (-1.0, 1.0)])
    names = [f"{d}/{c}" for d in "abcdef"[: len(positions)] for c in range(2)]
    return DepartmentClients(from_gram(names, x @ x.T), {name: name[0] for name in names})


def test_adjusted_share_by_hand():
    clients = line(0, 0, 6, 6)
    # within: 8 · 1 at 6 degrees of freedom; total: 8 + 8 · 9 at 7
    assert adjusted_share(clients, [0, 0, 1, 1]) == pytest.approx(1 - (8 / 6) / (80 / 7))
    assert adjusted_share(clients, [0, 0, 0, 0]) == 0
    # clusters that mean nothing: within 80 at 6
    assert adjusted_share(clients, [0, 1, 0, 1]) == pytest.approx(1 - (80 / 6) / (80 / 7))


def test_separations_by_hand_are_free_of_noise():
    clients = line(0, 4, 10)
    # s² = 6 / 3 = 2, W = 2: 2 · (1/2 + 1/2) is taken off the squares of 4, 10 and 6
    np.testing.assert_allclose(squared_distances(clients, [0, 1, 2]), [14, 98, 34], atol=1e-9)
    assert separation(clients, [0, 1, 2]) == pytest.approx(14 / ((14 + 98 + 34) / 3))
    assert separation(clients, [0, 0, 1]) == 1


def test_what_does_not_fit_is_refused(federation):
    dissimilarity, clients = federation(np.random.default_rng(0), [0, 0, 1, 1], 3, signal=1.0)

    def ask(sample=clients, **options):
        return dynamic(SelectionInput(dissimilarity, lambda k: Labels([0] * 4, 0.0), 2, 4, sample), **options)

    with pytest.raises(ValueError, match="rule 'dynamic': expected the clients of every department, got none"):
        ask(None)
    with pytest.raises(
        ValueError, match="clients: expected clients of the departments compared, got others, first d02"
    ):
        ask(federation(np.random.default_rng(0), [0, 0], 3, signal=0)[1])
    with pytest.raises(ValueError, match="got 0 and 0.67"):
        ask(level=0)
    with pytest.raises(ValueError, match="got 0.03 and 2"):
        ask(min_separation=2)
    with pytest.raises(ValueError, match="draws: expected at least 99 for a test at level 0.01, got 19"):
        ask(level=0.01, draws=19)
