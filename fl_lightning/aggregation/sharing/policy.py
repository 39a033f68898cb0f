"""What a share policy says: which LoRA factors a client trains, sends, and keeps for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fl_lightning.state import Factor


@dataclass(frozen=True)
class SharePolicy:
    """Who trains and who sees which factor in a round.

    Attributes:
        trainable_factor: the factor that clients train, by round number from 1.
        shared_factor: the factor that clients send and departments average, by round number.
        private_factor: the factor that stays with each client, survives rounds, and is averaged only into the
            department's exported adapter, from which a new client starts.
        is_central: whether all clients' records are trained on in one place instead.
    """

    trainable_factor: Callable[[int], Factor]
    shared_factor: Callable[[int], Factor]
    private_factor: Literal["a", "b", "all", "none"]
    is_central: bool = False


def always(factor: Factor) -> Callable[[int], Factor]:
    """The same factor in every round."""
    return lambda round_num: factor
