"""How many clients share an optimizer step.

A client's micro-batch is small; several clients in one packed row keep the device busy, see
`fl_lightning.modeling.cohort`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

STEP_TOKENS = {"cpu": 1000, "cuda": 16384}
"""Tokens per step of a cohort that keep the device busy. More fall out of a CPU's cache; fewer leave a GPU idle."""


def fixed_size_cohorts(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut items into cohorts of `size`, in order; the last one may be smaller.

    Example:
        >>> fixed_size_cohorts("abcde", 2)
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def cohorts_within_budget(items: Sequence[Item], tokens: Sequence[float], budget: float) -> list[list[Item]]:
    """Cut items into cohorts of at most `budget` tokens, in order; an item above the budget is a cohort by itself.

    Args:
        items: to be divided.
        tokens: tokens per step of each item.
        budget: tokens per step of a cohort.

    Example:
        >>> cohorts_within_budget("abc", [40, 40, 40], 100)
        [['a', 'b'], ['c']]
    """
    cohorts: list[list[Item]] = []
    total = 0.0
    for item, count in zip(items, tokens, strict=True):
        if cohorts and total + count <= budget:
            cohorts[-1].append(item)
            total += count
        else:
            cohorts.append([item])
            total = count
    return cohorts
