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
CARD_SHARE = 0.9
"""Share of a GPU's memory that a step may take; the rest is for fragmentation and for other programs."""


def row_tokens(device_type: str, token_bytes: int, fixed_bytes: int, card_bytes: float | None) -> int:
    """Tokens per step that keep the device busy, or on a GPU with less memory the half, a quarter … that fits.

    The rule looks at the memory that the card has, not at what is free just now, and halves, so that all cards of a
    kind divide clients in the same way.

    Args:
        device_type: cpu or cuda.
        token_bytes: memory for each token of a step.
        fixed_bytes: memory for weights, head and libraries.
        card_bytes: memory of the GPU; None does not limit the row.

    Example:
        >>> row_tokens("cuda", 2**20, 2**32, 80 * 2**30), row_tokens("cuda", 2**20, 2**32, 16 * 2**30)
        (16384, 8192)
    """
    tokens = STEP_TOKENS.get(device_type, STEP_TOKENS["cpu"])
    while card_bytes is not None and tokens > 1 and fixed_bytes + tokens * token_bytes > CARD_SHARE * card_bytes:
        tokens //= 2
    return tokens


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
