"""``alternate``: B in odd rounds, A in even ones, the other frozen (RoLoRA: Chen et al. 2025, arXiv 2502.01755).

In every round clients differ in one factor only, so its mean gives the mean of the products, exactly. B goes first: it
is zero at the start, and the gradient of A with it.

Example:
    >>> [POLICY.trainable_factor(round_num) for round_num in (1, 2, 3)]
    ['b', 'a', 'b']
"""

from fl_lightning.aggregation.sharing.policy import SharePolicy
from fl_lightning.state import Factor


def _turn(round_num: int) -> Factor:
    return "b" if round_num % 2 else "a"


POLICY = SharePolicy(trainable_factor=_turn, shared_factor=_turn, private_factor="none")
