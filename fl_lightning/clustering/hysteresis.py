"""A partition that changes only if another one is better by a margin in several consecutive rounds.

Clusters are computed anew each round from noisy updates. As a Schmitt trigger (Schmitt 1938) does, this keeps them from
flickering: the current partition is replaced only when another one beats it by `margin` in `patience` consecutive
rounds, both scored on that round's data. State in, state out; the state is plain JSON data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from fl_lightning.clustering.label_matching import match_labels
from fl_lightning.clustering.partition import number_by_first_appearance

Score = Callable[[Mapping[str, int]], float]
"""Quality of a partition {department: cluster id} on this round's data; higher is better."""


class Hysteresis(TypedDict):
    """State between rounds. The keys are written to checkpoints.

    Attributes:
        held: {department: cluster id}, the current partition; empty before the first round.
        challenger: the partition that won the last rounds, with the ids of `held`.
        wins: number of consecutive rounds that it won.
        numbers: number of cluster ids used up to now.
    """

    held: dict[str, int]
    challenger: dict[str, int]
    wins: int
    numbers: int


def no_partition() -> Hysteresis:
    """The state before the first round."""
    return {"held": {}, "challenger": {}, "wins": 0, "numbers": 0}


def update_partition(
    state: Hysteresis, proposed: Mapping[str, int], score: Score, *, margin: float = 0.02, patience: int = 2
) -> Hysteresis:
    """The state after a round; its ``held`` is the partition to use.

    Args:
        state: after the round before.
        proposed: {department: cluster id} of this round.
        score: see `Score`; for example `n_clusters.mean_silhouette`, or `dynamic.adjusted_share` if one cluster is a
            possible answer.
        margin: the score of `proposed` must exceed that of the current partition by more than this.
        patience: in how many consecutive rounds the same partition must win; 1 replaces at once.

    Returns:
        A new state. Clusters that persist keep their ids (see `match_labels`). If departments come or go, `proposed` is
        taken at once, since the old partition does not cover the same departments.

    Raises:
        ValueError: no departments, or a number out of range.

    Example:
        >>> one, two = {"hr": 0, "it": 0, "ops": 1}, {"hr": 0, "it": 1, "ops": 1}
        >>> score = lambda partition: 1.0 if partition["it"] == partition["ops"] else 0.0
        >>> state = update_partition(no_partition(), one, score)
        >>> for _ in range(2):
        ...     state = update_partition(state, two, score)
        ...     print(state["held"], state["wins"])
        {'hr': 0, 'it': 0, 'ops': 1} 1
        {'hr': 0, 'it': 1, 'ops': 1} 0
    """
    if not proposed:
        raise ValueError("proposed: expected at least one department, got none")
    if margin < 0 or patience < 1:
        raise ValueError(f"expected margin ≥ 0 and patience ≥ 1, got margin {margin}, patience {patience}")
    current, n_used = state["held"], state["numbers"]
    new = match_labels(current, proposed, range(n_used))
    n_used_after = max(n_used, max(new.values()) + 1)
    replaced: Hysteresis = {"held": new, "challenger": {}, "wins": 0, "numbers": n_used_after}
    unchanged: Hysteresis = {"held": dict(current), "challenger": {}, "wins": 0, "numbers": n_used}
    if current.keys() != new.keys():
        return replaced
    if same_partition(current, new) or not score(new) > score(current) + margin:
        return unchanged
    wins = state["wins"] + 1 if same_partition(state["challenger"], new) else 1
    return replaced if wins >= patience else {**unchanged, "challenger": new, "wins": wins}


def same_partition(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    """Whether both put the same departments together, whatever the ids.

    Example:
        >>> same_partition({"hr": 0, "it": 1}, {"it": 0, "hr": 5})
        True
    """
    names = sorted(first)
    if names != sorted(second):
        return False
    one, two = (number_by_first_appearance([labels[name] for name in names]) for labels in (first, second))
    return one == two
