"""Cluster ids that stay the same from round to round.

Kuhn 1955, "The Hungarian method for the assignment problem" (SciPy's `linear_sum_assignment`): of all ways to give old
ids to new clusters, the one that lets most departments keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np


def match_labels(previous: Mapping[str, int], current: Mapping[str, int], used: Iterable[int] = ()) -> dict[str, int]:
    """`current` with the ids of `previous` where possible.

    A cluster can only take the id of an old cluster with which it shares a department, every id goes to one cluster,
    and the largest possible number of departments keep their id. The remaining clusters get new ids, counting up from
    the largest one used, in the order of the sorted departments.

    Args:
        previous: {department: cluster id}; may be empty, and may hold other departments.
        current: {department: cluster id}.
        used: ids of earlier rounds, which are not given to new clusters.

    Returns:
        {department: cluster id}, the same partition as `current`, in sorted order of departments.

    Example:
        >>> match_labels({"hr": 0, "it": 1, "ops": 1, "law": 2}, {"hr": 1, "it": 0, "ops": 0, "pr": 7})
        {'hr': 0, 'it': 1, 'ops': 1, 'pr': 3}
    """
    from scipy.optimize import linear_sum_assignment

    names, old_ids = sorted(current), sorted(set(previous.values()))
    labels = list(dict.fromkeys(current[name] for name in names))
    overlap = np.zeros((len(labels), len(old_ids)), dtype=np.int64)
    for name in names:
        if name in previous:
            overlap[labels.index(current[name]), old_ids.index(previous[name])] += 1
    ids: dict[int, int] = {}
    for i, j in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        if overlap[i, j] > 0:
            ids[labels[i]] = old_ids[j]
    next_id = max([-1, *old_ids, *used]) + 1
    for label in labels:
        if label not in ids:
            ids[label] = next_id
            next_id += 1
    return {name: ids[current[name]] for name in names}
