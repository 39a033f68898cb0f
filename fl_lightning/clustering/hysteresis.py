"""A partition that changes only for a reason: better by a margin, and in several rounds running.

Clusters are decided anew each round from noisy updates. A Schmitt trigger (Schmitt 1938) keeps them from flickering:
the held partition goes only when another one beats it by `margin` in `patience` rounds running, both scored on what
the round shows. State in, state out; the state is plain data and goes through JSON as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from fl_lightning.clustering.kmeans import number_by_first_appearance
from fl_lightning.clustering.label_matching import match

Score = Callable[[Mapping[str, int]], float]
"""How good a partition {department: cluster} of the departments at hand is; more is better."""


class Hysteresis(TypedDict):
    """What is remembered between rounds.

    Attributes:
        held: {department: cluster}; empty before the first round.
        challenger: the partition that has beaten it of late, in the numbers of `held`.
        wins: in how many rounds running.
        numbers: how many cluster numbers have been given out.
    """

    held: dict[str, int]
    challenger: dict[str, int]
    wins: int
    numbers: int


def no_partition() -> Hysteresis:
    """The state before the first round."""
    return {"held": {}, "challenger": {}, "wins": 0, "numbers": 0}


def settle(
    state: Hysteresis, proposed: Mapping[str, int], score: Score, *, margin: float = 0.02, patience: int = 2
) -> Hysteresis:
    """The state after a round; its ``held`` is the partition to use.

    Args:
        state: after the round before.
        proposed: {department: cluster} of this round.
        score: see `Score`; `rules.mean_silhouette` will do, or `dynamic.adjusted_share` where one cluster is an answer.
        margin: by how much the score of `proposed` must beat that of the held partition, more than that.
        patience: in how many rounds running the same partition must do so; 1 waits for no second round.

    Returns:
        A new state. Clusters that go on keep their numbers (see `stability.match`). If departments come or go, the
        proposed partition is held at once: a partition of others cannot be kept.

    Raises:
        ValueError: no departments, or a number out of range.

    Example:
        >>> one, two = {"hr": 0, "it": 0, "ops": 1}, {"hr": 0, "it": 1, "ops": 1}
        >>> score = lambda partition: 1.0 if partition["it"] == partition["ops"] else 0.0
        >>> state = settle(no_partition(), one, score)
        >>> for _ in range(2):
        ...     state = settle(state, two, score)
        ...     print(state["held"], state["wins"])
        {'hr': 0, 'it': 0, 'ops': 1} 1
        {'hr': 0, 'it': 1, 'ops': 1} 0
    """
    if not proposed:
        raise ValueError("proposed: got no department, wanted at least one")
    if margin < 0 or patience < 1:
        raise ValueError(f"got margin {margin}, patience {patience}; wanted at least 0 and at least 1 round")
    held, used = state["held"], state["numbers"]
    new = match(held, proposed, range(used))
    given_out = max(used, max(new.values()) + 1)
    replaced: Hysteresis = {"held": new, "challenger": {}, "wins": 0, "numbers": given_out}
    kept: Hysteresis = {"held": dict(held), "challenger": {}, "wins": 0, "numbers": used}
    if held.keys() != new.keys():
        return replaced
    if same(held, new) or not score(new) > score(held) + margin:
        return kept
    wins = state["wins"] + 1 if same(state["challenger"], new) else 1
    return replaced if wins >= patience else {**kept, "challenger": new, "wins": wins}


def same(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    """Whether both put the same departments together, whatever the numbers.

    Example:
        >>> same({"hr": 0, "it": 1}, {"it": 0, "hr": 5})
        True
    """
    names = sorted(first)
    if names != sorted(second):
        return False
    one, two = (number_by_first_appearance([labels[name] for name in names]) for labels in (first, second))
    return one == two
