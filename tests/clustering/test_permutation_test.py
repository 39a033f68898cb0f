import itertools

import numpy as np
import pytest

from fl_lightning.clustering.dissimilarity import from_gram
from fl_lightning.clustering.permutation_test import arrangements, department_sums, p_value, ways_of_one
from fl_lightning.clustering.sums_of_squares import DepartmentClients


def test_arrangements_are_those_that_can_be_told_apart():
    assert arrangements([3, 3], [0, 0]) == 10
    assert arrangements([3, 2], [0, 0]) == 10  # 5! / (3! 2!): departments of other sizes cannot swap
    assert arrangements([2, 2, 2], [0, 0, 0]) == 15
    assert arrangements([2, 2, 2], [0, 0, 1]) == 3
    assert arrangements([1, 1, 1, 1], [0, 0, 0, 0]) == 1
    assert arrangements([3, 5], [0, 1]) == 1


def test_arrangements_are_counted_by_listing_them():
    deals = {
        frozenset([frozenset(order[:2]), frozenset(order[2:4]), (frozenset(order[4:]), "three")])
        for order in itertools.permutations(range(7))
    }
    assert arrangements([2, 2, 3], [0, 0, 0]) == len(deals)


def test_ways_of_one_are_those_of_the_department_that_has_the_fewest():
    assert ways_of_one([2] * 6, [0] * 6) == 11
    assert ways_of_one([1, 3, 3], [0, 0, 0]) == 7  # one of 7 clients, rather than 35 / 2
    assert ways_of_one([3, 3, 9], [0, 0, 1]) == 10
    assert ways_of_one([3, 4], [0, 1]) == float("inf")
    assert ways_of_one([20] * 100, [0] * 100) > 1e30  # more than a float holds


def test_sums_are_weighted():
    points = np.array([[1.0], [2.0], [4.0]])
    sums, mass = department_sums(points, np.array([1.0, 3.0, 2.0]), [2, 1])
    assert sums.tolist() == [[[7.0], [8.0]]]
    assert mass.tolist() == [[4.0, 2.0]]


def test_p_of_two_departments_is_the_share_of_splits_at_least_as_far_apart():
    # Of the 35 ways to split 8 clients on a line in halves, only the one that is there parts the low from the high.
    x = np.array([[0.0], [1.1], [2.3], [3.6], [10.0], [11.4], [12.9], [14.5]])
    names = list("abcdefgh")
    clients = DepartmentClients(from_gram(names, x @ x.T), {n: "low" if n < "e" else "top" for n in names})
    assert p_value(clients, [0, 0], draws=9999, seed=0) == pytest.approx(1 / 35, abs=0.005)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("signal", [0.0, 2.0])
def test_p_is_uniform_where_the_groups_are_pools(federation, rotate, signal):
    # k = 2 given groups of two departments each, of 5 clients: both nulls hold
    draw = np.random.default_rng(0)
    result = [
        p_value(federation(draw, [0, 0, 1, 1], 5, signal=signal)[1], [0, 0, 1, 1], draws=99, seed=i, rotate=rotate)
        for i in range(150)
    ]
    assert np.mean(np.array(result) <= 0.05) <= 0.10
    assert np.mean(np.array(result) <= 0.50) == pytest.approx(0.5, abs=0.13)


def test_rotations_see_what_ten_arrangements_cannot(federation):
    dissimilarity, clients = federation(np.random.default_rng(1), [0, 1, 2], 3, signal=1.0)
    assert dissimilarity.names == clients.departments
    assert p_value(clients, [0, 0, 1], seed=0, rotate=False) >= 0.05
    assert p_value(clients, [0, 0, 1], seed=0) <= 0.01


def test_the_order_of_clients_and_the_scale_do_not_matter(federation):
    _, clients = federation(np.random.default_rng(2), [0, 0, 1, 1], 3, signal=0.2)
    gram = 100 * clients.dissimilarity.gram
    scaled = DepartmentClients(
        from_gram(clients.dissimilarity.names, gram), dict(reversed(clients.department_of.items()))
    )
    assert p_value(scaled, [0] * 4, seed=3) == p_value(clients, [0] * 4, seed=3)


def test_blocks_of_draws_change_nothing(federation, monkeypatch):
    _, clients = federation(np.random.default_rng(4), [0, 0, 1, 1], 3, signal=0.15)
    expected = p_value(clients, [0] * 4, draws=99, seed=3), p_value(clients, [0, 0, 1, 1], draws=99, seed=3)
    monkeypatch.setattr("fl_lightning.clustering.permutation_test._BLOCK", 1000)
    result = p_value(clients, [0] * 4, draws=99, seed=3), p_value(clients, [0, 0, 1, 1], draws=99, seed=3)
    assert result == pytest.approx(expected, abs=0.1)  # the draws are others
    assert p_value(clients, [0] * 4, draws=99, seed=3) == result[0]


def test_nothing_to_see_is_p_one():
    names = ["a", "b", "c", "d"]
    owner = dict(zip(names, "xxyy", strict=True))
    assert p_value(DepartmentClients(from_gram(names, np.ones((4, 4))), owner), [0, 0], seed=0) == 1
    assert p_value(DepartmentClients(from_gram(names, np.eye(4)), owner), [0, 1], seed=0) == 1
    alone = DepartmentClients(from_gram(names, np.diag([1.0, 2, 3, 4])), dict(zip(names, names, strict=True)))
    assert p_value(alone, [0, 0, 0, 0], seed=0) == 1


def test_what_does_not_fit_is_refused(federation):
    _, clients = federation(np.random.default_rng(0), [0, 0], 2, signal=0)
    with pytest.raises(ValueError, match="groups: expected a label for each of 2 departments, got 3"):
        p_value(clients, [0, 0, 0], seed=0)
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        p_value(clients, [0, 0], draws=0, seed=0)
