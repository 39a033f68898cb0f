from collections import Counter

import pytest

from fl_lightning.training.client_sampling import sample_clients

CLIENTS = [f"hr/client_{i}" for i in range(10)]


def sample(**how):
    return sample_clients(CLIENTS, **{"seed": 1, "round_num": 1, "department": "hr", **how})


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ({}, 10),
        ({"client_fraction": 0.3}, 3),
        ({"client_fraction": 0.01}, 1),  # never nobody
        ({"client_fraction": 0.25}, 2),  # round(2.5) is 2 in Python: half to even
        ({"clients_per_round": 4}, 4),
        ({"clients_per_round": 40}, 10),
        ({"clients_per_round": 1, "client_fraction": 1.0}, 1),
    ],
)
def test_number_of_clients(how, count):
    assert len(sample(**how)) == count


def test_no_client_twice_and_order_kept():
    chosen = sample(clients_per_round=5)
    assert chosen == sorted(set(chosen), key=CLIENTS.index)


def test_draw_depends_on_seed_round_and_department_alone():
    first = sample(clients_per_round=3)
    assert sample(clients_per_round=3) == first
    others = [sample(clients_per_round=3, **o) for o in ({"seed": 2}, {"round_num": 2}, {"department": "finance"})]
    assert all(other != first for other in others)


def test_every_client_gets_its_turn_about_equally_often():
    counts = Counter(c for r in range(1, 1001) for c in sample(clients_per_round=3, round_num=r))
    # 1,000 draws with probability 0.3 each: mean 300, standard deviation 14.5; five of them either way
    assert set(counts) == set(CLIENTS)
    assert all(300 - 73 < n < 300 + 73 for n in counts.values())
