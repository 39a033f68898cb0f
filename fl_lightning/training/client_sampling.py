"""Sample the clients of a department for a round: a seeded draw without replacement.

McMahan et al. 2017 (arXiv 1602.05629) sample max(C · K, 1) of K clients in every round.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from fl_lightning.seeding import derive_seed


def sample_clients(
    clients: Sequence[str],
    *,
    clients_per_round: int | None = None,
    client_fraction: float = 1.0,
    seed: int,
    round_num: int,
    department: str,
) -> list[str]:
    """The sampled clients of one department, in the order of `clients`.

    Args:
        clients: client ids of the department.
        clients_per_round: number of sampled clients (all, if the department has fewer); None uses the fraction.
        client_fraction: ``round(client_fraction · K)`` of K clients are sampled, at least one.
        seed: of the run; the draw depends only on it, the round and the department.
        round_num: from 1.
        department: name of the department.

    Returns:
        At least one client if `clients` is not empty.

    Example:
        >>> clients = ["hr/a", "hr/b", "hr/c", "hr/d"]
        >>> len(sample_clients(clients, client_fraction=0.5, seed=1, round_num=1, department="hr"))
        2
    """
    count = num_sampled(len(clients), clients_per_round, client_fraction)
    if count >= len(clients):
        return list(clients)
    generator = random.Random(derive_seed(seed, "sample", round_num, department))
    return [clients[index] for index in sorted(generator.sample(range(len(clients)), count))]


def num_sampled(total: int, clients_per_round: int | None, client_fraction: float) -> int:
    """How many of a department's `total` clients a round asks."""
    return min(total, max(1, round(client_fraction * total)) if clients_per_round is None else clients_per_round)
