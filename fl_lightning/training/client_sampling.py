"""Which clients of a department take part in a round: a seeded draw without replacement.

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
    """The clients of one department that are asked in a round, in the order given.

    Args:
        clients: client ids of the department.
        clients_per_round: so many, or all where the department has fewer; None goes by the fraction.
        client_fraction: ``round(client_fraction · K)`` of K clients, at least one.
        seed: the run seed; the draw depends on it, the round and the department alone.
        round_num: the round, from 1.
        department: the department's name.

    Returns:
        At least one client, if there is one.

    Example:
        >>> clients = ["hr/a", "hr/b", "hr/c", "hr/d"]
        >>> len(sample_clients(clients, client_fraction=0.5, seed=1, round_num=1, department="hr"))
        2
    """
    wanted = max(1, round(client_fraction * len(clients))) if clients_per_round is None else clients_per_round
    if wanted >= len(clients):
        return list(clients)
    draw = random.Random(derive_seed(seed, "sample", round_num, department))
    chosen = set(draw.sample(range(len(clients)), wanted))
    return [client for index, client in enumerate(clients) if index in chosen]
