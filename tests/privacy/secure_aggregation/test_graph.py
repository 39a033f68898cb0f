import math

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from fl_lightning.privacy.secure_aggregation.graph import degree_for, neighbors
from fl_lightning.privacy.secure_aggregation.terms import Terms

TERMS = Terms("run", "hr", 1, invited=2000, size=1)


@pytest.mark.parametrize("clients", [2, 3, 16, 41])
def test_few_clients_are_all_neighbors(clients):
    assert degree_for(clients, TERMS) == clients - 1


@pytest.mark.parametrize(("clients", "degree"), [(64, 40), (1000, 116)])
def test_many_have_a_fixed_number_of_neighbors_in_both_directions(clients, degree):
    names = [f"hr/{i}" for i in range(clients)]
    graph = neighbors(names, b"seed", degree_for(clients, TERMS))
    assert {len(set(others)) for others in graph.values()} == {degree}
    assert all(a in graph[b] and a != b for a in names for b in graph[a])


def test_the_order_follows_the_seed():
    names = [f"hr/{i}" for i in range(100)]
    assert neighbors(names, b"1", 10) == neighbors(reversed(names), b"1", 10)
    assert neighbors(names, b"1", 10) != neighbors(names, b"2", 10)


def hypergeometric_tail(at_least, population, marked, draws):
    ways = [math.comb(marked, x) * math.comb(population - marked, draws - x) for x in range(at_least, draws + 1)]
    return sum(ways) / math.comb(population, draws)


@pytest.mark.parametrize("clients", [100, 300])
def test_the_degree_is_the_smallest_that_keeps_the_bounds(clients):
    def fits(degree):
        holders, tenth = degree + 1, clients // 10
        needed = 2 * holders // 3 + 1
        both = hypergeometric_tail(2 * needed - holders, clients - 1, tenth, degree)
        lost = hypergeometric_tail(holders - needed + 1, clients, tenth, holders)
        return clients * max(both, 0.2 ** (degree // 2)) <= 2**-40 and clients * lost <= 2**-20

    degree = degree_for(clients, TERMS)
    assert fits(degree)
    assert not fits(degree - 2)


def test_stays_connected_when_a_fifth_goes():
    generator = np.random.default_rng(0)
    names = list(range(200))
    graph = neighbors(map(str, names), b"s", degree_for(200, TERMS))
    matrix = np.zeros((200, 200))
    for name, others in graph.items():
        matrix[int(name), [int(other) for other in others]] = 1
    for _ in range(50):
        left = generator.permutation(200)[:160]
        assert connected_components(matrix[np.ix_(left, left)])[0] == 1
