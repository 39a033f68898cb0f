"""How many clusters, including one: as many as the clients of the departments can tell apart.

A silhouette or an elbow finds clusters in noise. Here the noise is measured: departments have clients, and clients of
one pool differ too. Three steps; the first two are tests (`permutation_test`) at a level of 3 %:

1. *Is there any structure?* Null hypothesis: the clients of all departments are one pool; they are permuted. If it is
   not rejected, the answer is one cluster. Whatever the clients are like, a single pool is split in at most 3 % of
   cases (below the usual 5 %, to leave some margin). This is the only guarantee.
2. *Are k clusters enough?* For k = 2, 3, … the null hypothesis is that each cluster of the partition at k is one pool.
   The first k that is not rejected is the last one supported. The clusters were fitted to the same departments that are
   tested, so the answer errs towards fewer.
3. *Is a further cluster worth it?* With many clients every two departments differ. Of the supported k, the largest is
   taken whose two nearest clusters are at least `min_separation` times the average distance of clusters apart.
   Distances are squared and corrected for noise: with m the means, W the weights, s² the squared spread of clients
   within departments, ``‖m_a − m_b‖² − s² (1 / W_a + 1 / W_b)``.

Limits. Clients are needed: with one client in each department nothing can be permuted, and the answer is one cluster.
With fewer than 34 permutations (2 departments × 3 clients: 10) no p-value can reach 3 %, so the answer is one cluster
as well. Structure that random permutations often reproduce cannot be detected either: one odd department of 6 × 2
clients (p = 0.09), two clusters of two in 4 × 2 (p = 0.09). Step 2 has no such limit but assumes that the noise of all
clients is alike. A test asks whether departments differ, not whether it is better to keep them apart: small but certain
differences pass steps 1 and 2, and the value of `min_separation` is a judgment (two thirds separates the bundled
departments as they were made; at one half all four are apart after two rounds). Clients of a department that share more
than its task (an office, an annotator) look like structure.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import numpy as np

from fl_lightning.clustering.n_clusters import SelectionInput, SelectionResult
from fl_lightning.clustering.partition import Array
from fl_lightning.clustering.permutation_test import arrangements, p_value
from fl_lightning.clustering.sums_of_squares import DepartmentClients, within_cluster_ss

log = logging.getLogger(__name__)


def dynamic(
    selection: SelectionInput, *, level: float = 0.03, draws: int = 999, min_separation: float = 0.67
) -> SelectionResult:
    """The number of clusters that the clients support: 1, or from `min_clusters` (at least 2) to `max_clusters`.

    Args:
        selection: with clients, of the same departments.
        level: of each test; how often one pool may be split.
        draws: random draws from the null hypothesis, for each test.
        min_separation: in [0, 1]; 0 takes every cluster that can be told apart.

    Returns:
        The result; its scores are the `adjusted_share` explained by k clusters, for every k tried.

    Raises:
        ValueError: no clients, clients of other departments, or a number out of range.
    """
    clients, names = selection.clients, selection.dissimilarity.names
    if clients is None:
        raise ValueError("rule 'dynamic': expected the clients of every department, got none; pass clients=")
    if clients.departments != names:
        odd = min(set(clients.departments) ^ set(names))
        raise ValueError(f"clients: expected clients of the departments compared, got others, first {odd}")
    if not (0 < level < 1 and 0 <= min_separation <= 1):
        raise ValueError(f"expected level in (0, 1) and min_separation in [0, 1], got {level} and {min_separation}")
    if draws + 1 < 1 / level:
        raise ValueError(f"draws: expected at least {1 / level - 1:.0f} for a test at level {level}, got {draws}")
    if (ways := arrangements(clients.sizes, [0] * len(clients.sizes))) < 1 / level:
        log.info("only %d ways to assign clients to departments: no test at level %g can detect clusters", ways, level)
        return SelectionResult(1, {1: 0.0}, {1: 1.0})
    p_values: dict[int, float] = {}
    scores = {1: 0.0}
    largest, supported = selection.clamp(selection.max_clusters), 1
    while supported < largest:
        p_values[supported] = p_value(clients, selection.labels(supported), draws=draws, seed=selection.seed)
        if p_values[supported] > level:
            break
        supported += 1
        scores[supported] = adjusted_share(clients, selection.labels(supported))
    if supported == 1:
        return SelectionResult(1, scores, p_values)
    separated = [k for k in range(2, supported + 1) if separation(clients, selection.labels(k)) >= min_separation]
    return SelectionResult(selection.clamp(max(separated, default=2)), scores, p_values)


def adjusted_share(clients: DepartmentClients, labels: Sequence[int]) -> float:
    """``1 − (SS_within / (N − k)) / (SS_total / (N − 1))``: Kelley's ε² (1935), the share explained beyond chance.

    It is 0 for one cluster, about 0 for meaningless clusters, and at most 1. It grows with the number of clusters only
    if they explain more than noise would.

    Args:
        clients: N of them.
        labels: of the departments, in sorted order of names; k different ones.
    """
    client_labels = np.asarray(labels)[clients.department_index]
    n, k = len(client_labels), len(set(labels))
    total = within_cluster_ss(clients.points, clients.weights, [0] * n)
    if k == 1 or k == n or total == 0:
        return 0.0
    within = within_cluster_ss(clients.points, clients.weights, client_labels.tolist())
    return 1 - within / (n - k) / (total / (n - 1))


def separation(clients: DepartmentClients, labels: Sequence[int]) -> float:
    """Squared distance of the two nearest clusters over the average one, both corrected for noise.

    Returns:
        1 for one or two clusters; else in [0, 1].
    """
    squared = squared_distances(clients, labels)
    average = float(squared.mean()) if len(squared) else 0.0
    return 1.0 if len(squared) <= 1 else max(0.0, float(squared.min()) / average) if average > 0 else 0.0


def squared_distances(clients: DepartmentClients, labels: Sequence[int]) -> Array:
    """``‖m_a − m_b‖² − s² (1 / W_a + 1 / W_b)`` for every two clusters: shape (k (k − 1) / 2,). May be negative."""
    client_labels, x, w = np.asarray(labels)[clients.department_index], clients.points, clients.weights
    degrees_of_freedom = max(len(x) - len(clients.departments), 1)
    noise = within_cluster_ss(x, w, clients.department_index.tolist()) / degrees_of_freedom
    clusters = [client_labels == label for label in sorted(set(labels))]
    totals = [w[cluster].sum() for cluster in clusters]
    means = [w[cluster] @ x[cluster] / total for cluster, total in zip(clusters, totals, strict=True)]
    squared: Array = np.array(
        [
            ((means[a] - means[b]) ** 2).sum() - noise * (1 / totals[a] + 1 / totals[b])
            for a, b in itertools.combinations(range(len(clusters)), 2)
        ]
    )
    return squared
