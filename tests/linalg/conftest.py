"""LoRA states of clients, and departments with attackers among them."""

from attacked_clients import attacked, counting, department
from lora_factors import dense, dense_mean, far, make_clients, make_state, two_by_two

__all__ = [
    "attacked",
    "counting",
    "department",
    "dense",
    "dense_mean",
    "far",
    "make_clients",
    "make_state",
    "two_by_two",
]
