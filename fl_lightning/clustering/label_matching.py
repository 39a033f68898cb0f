"""Clusters that keep their numbers from round to round.

Kuhn 1955, "The Hungarian method for the assignment problem" (SciPy's `linear_sum_assignment`): of all ways to give new
clusters old numbers, the one under which most departments keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np


def match(previous: Mapping[str, int], now: Mapping[str, int], taken: Iterable[int] = ()) -> dict[str, int]:
    """`now` with the numbers of `previous` as far as possible.

    Each cluster gets the number of one it shares a department with, each number goes to one cluster, and the number of
    departments that keep theirs is as large as can be. Clusters that are left get numbers never used before, from the
    largest + 1 up, in the order of the sorted departments.

    Args:
        previous: {department: cluster}; may be empty, and of other departments.
        now: {department: cluster}.
        taken: numbers used in earlier rounds, so that a cluster that is gone is not mixed up with a new one.

    Returns:
        {department: cluster}, the same partition as `now`, in sorted order of departments.

    Example:
        >>> match({"hr": 0, "it": 1, "ops": 1, "law": 2}, {"hr": 1, "it": 0, "ops": 0, "pr": 7})
        {'hr': 0, 'it': 1, 'ops': 1, 'pr': 3}
    """
    from scipy.optimize import linear_sum_assignment

    names, old = sorted(now), sorted(set(previous.values()))
    new = list(dict.fromkeys(now[name] for name in names))
    overlap = np.zeros((len(new), len(old)), dtype=np.int64)
    for name in names:
        if name in previous:
            overlap[new.index(now[name]), old.index(previous[name])] += 1
    numbers: dict[int, int] = {}
    for i, j in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        if overlap[i, j] > 0:
            numbers[new[i]] = old[j]
    free = max([-1, *old, *taken]) + 1
    for label in new:
        if label not in numbers:
            numbers[label] = free
            free += 1
    return {name: numbers[now[name]] for name in names}
