"""How many clusters, one included: as many as the clients of the departments can tell apart.

A silhouette or an elbow finds clusters in noise. Here noise is known: departments have clients, and clients of one pool
differ too. Three steps, of which the first two are tests (`fl_lightning.clustering.permutation_test`) at one level, 3
%:

1. *Is there any structure?* The clients of all departments are one pool: permuted. Not rejected: one cluster. Whatever
   clients are like, this says "more than one" of one pool in at most 3 % of cases (5 % with room to spare, so
   that 95 of 100 are right not just on average). It is the only thing promised.
2. *Are k clusters enough?* For k = 2, 3, … each cluster of the partition at k is one pool. The first k that is not
   rejected is the last one supported. The question is asked of clusters that were made to fit the same departments, so
   the answer errs towards fewer.
3. *Is it worth it?* With many clients every two departments differ. Of the k supported, the largest is taken whose
   nearest two clusters are apart by at least `detail` of what clusters are apart on average. Distances are squared, and
   free of noise: with m the means, W the weights, s² the squared spread of clients in departments, it is
   ``‖m_a − m_b‖² − s² (1 / W_a + 1 / W_b)``.

Limits. Clients are needed: with one client a department nothing can be permuted and the answer is one cluster. So it is
where there are fewer than 34 ways to deal the clients (2 departments × 3 clients: 10), and what chance deals too often
cannot be seen: one odd department of 6 × 2 clients (p = 0.09), two clusters of two in 4 × 2 (p = 0.09). Step 2 has no
such limit but takes the noise of all clients to be alike. A test asks whether departments differ, not whether it is
better to keep them apart: small differences that are there for sure pass steps 1 and 2, and `detail` is a taste (two
thirds part the bundled departments as they were made; at one half all four are apart after two rounds).
Clients of a department that share more than its task (an office, a labeller) look like structure.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import numpy as np

from fl_lightning.clustering.kmeans import Array
from fl_lightning.clustering.n_clusters import Choice, Problem
from fl_lightning.clustering.permutation_test import arrangements, p_value
from fl_lightning.clustering.sums_of_squares import Clients, within

log = logging.getLogger(__name__)


def dynamic(problem: Problem, *, level: float = 0.03, draws: int = 999, detail: float = 0.67) -> Choice:
    """The number of clusters that the clients support: 1, or from `min_clusters` (2 at least) to `max_clusters`.

    Args:
        problem: with clients, of the same departments.
        level: of each test; how often one pool may be called more than one cluster.
        draws: of the null, for each test.
        detail: in [0, 1]; 0 takes every cluster that can be told apart.

    Returns:
        The choice; its scores are the `adjusted_share` explained by k clusters, for every k tried.

    Raises:
        ValueError: no clients, clients of other departments, or a number out of range.
    """
    clients = problem.clients
    if clients is None:
        raise ValueError("rule 'dynamic': got no clients, wanted those of every department: pass clients=")
    if clients.departments != problem.relation.names:
        odd = min(set(clients.departments) ^ set(problem.relation.names))
        raise ValueError(f"clients: got other departments than the relation has, first {odd}; wanted the same")
    if not (0 < level < 1 and 0 <= detail <= 1):
        raise ValueError(f"got level {level}, detail {detail}; wanted them in (0, 1) and [0, 1]")
    if draws + 1 < 1 / level:
        raise ValueError(f"draws: got {draws}, wanted at least {1 / level - 1:.0f} for a test at level {level}")
    if (ways := arrangements(clients.sizes, [0] * len(clients.sizes))) < 1 / level:
        log.info(
            "clients can be dealt to departments in %d ways only: no test at level %g can see clusters", ways, level
        )
        return Choice(1, {1: 0.0}, {1: 1.0})
    p_values: dict[int, float] = {}
    scores = {1: 0.0}
    most, supported = problem.clamp(problem.max_clusters), 1
    while supported < most:
        p_values[supported] = p_value(clients, problem.label(supported), draws=draws, seed=problem.seed)
        if p_values[supported] > level:
            break
        supported += 1
        scores[supported] = adjusted_share(clients, problem.label(supported))
    worth = [k for k in range(2, supported + 1) if nearest_share(clients, problem.label(k)) >= detail]
    if supported == 1:
        return Choice(1, scores, p_values)
    return Choice(problem.clamp(max(worth, default=2)), scores, p_values)


def adjusted_share(clients: Clients, labels: Sequence[int]) -> float:
    """``1 − (SS_within / (N − k)) / (SS_total / (N − 1))``: Kelley's ε² (1935), the share explained beyond chance.

    It is 0 for one cluster, about 0 for clusters that mean nothing, and at most 1; it grows with the number of clusters
    only where they explain more than noise would.

    Args:
        clients: N of them.
        labels: of the departments, in sorted order of names; k different ones.
    """
    of_clients = np.asarray(labels)[clients.owner]
    n, k = len(of_clients), len(set(labels))
    total = within(clients.points, clients.mass, [0] * n)
    if k == 1 or k == n or total == 0:
        return 0.0
    return 1 - within(clients.points, clients.mass, of_clients.tolist()) / (n - k) / (total / (n - 1))


def nearest_share(clients: Clients, labels: Sequence[int]) -> float:
    """The squared distance of the nearest two clusters over that of clusters on average, free of noise.

    Returns:
        1 for two clusters or one; else in [0, 1].
    """
    apart = separations(clients, labels)
    average = float(apart.mean()) if len(apart) else 0.0
    return 1.0 if len(apart) <= 1 else max(0.0, float(apart.min()) / average) if average > 0 else 0.0


def separations(clients: Clients, labels: Sequence[int]) -> Array:
    """``‖m_a − m_b‖² − s² (1 / W_a + 1 / W_b)`` for every two clusters: shape (k (k − 1) / 2,). May be negative."""
    of_clients, x, w = np.asarray(labels)[clients.owner], clients.points, clients.mass
    noise = within(x, w, clients.owner.tolist()) / max(len(x) - len(clients.departments), 1)
    groups = [of_clients == label for label in sorted(set(labels))]
    means, masses = [w[own] @ x[own] / w[own].sum() for own in groups], [w[own].sum() for own in groups]
    found: Array = np.array(
        [
            ((means[a] - means[b]) ** 2).sum() - noise * (1 / masses[a] + 1 / masses[b])
            for a, b in itertools.combinations(range(len(groups)), 2)
        ]
    )
    return found
