"""What a client's aggregation weight may depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_COUNT = 2**53
"""Integers up to here are exact as floats."""


@dataclass(frozen=True)
class ClientStats:
    """One client's figures of one round, as it sent them: nobody can check them from outside.

    Attributes:
        num_examples: training records, at least 1.
        num_tokens: tokens trained on, over all epochs.
        losses: mean loss of each optimizer step, in order; empty where they are not known.

    Raises:
        ValueError: if a count is no integer or out of range, or a loss is no number.

    Example:
        >>> ClientStats(num_examples=2, num_tokens=90).losses
        ()
    """

    num_examples: int
    num_tokens: int
    losses: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Check the counts and losses, so that no rule fails on them."""
        for name, least in {"num_examples": 1, "num_tokens": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= MAX_COUNT:
                large = type(value) is int and value.bit_length() > 64  # Python writes out no integer of any length
                got = f"an integer of {value.bit_length()} bits" if large else repr(value)[:40]
                raise ValueError(f"{name}: got {got}, wanted an integer from {least} to 2^53")
        losses: Sequence[object] = self.losses
        for loss in losses:
            if not isinstance(loss, float) and not (type(loss) is int and abs(loss) <= MAX_COUNT):
                raise ValueError(f"losses: got {type(loss).__name__}, wanted numbers, integers up to 2^53")


class Weighting(Protocol):
    """A rule that gives the clients of one department their aggregation weights."""

    def __call__(self, updates: Mapping[str, ClientStats]) -> dict[str, float]:
        """The weights by client; see `fl_lightning.aggregation.weighting` for what they keep to."""
        ...


def check_some(updates: Mapping[str, ClientStats]) -> None:
    """Check that there is somebody to weigh.

    Raises:
        ValueError: if there is nobody.
    """
    if not updates:
        raise ValueError("no clients to weigh: got none, wanted at least one")
