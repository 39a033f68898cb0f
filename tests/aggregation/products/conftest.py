"""LoRA states of clients."""

from lora_factors import dense, dense_mean, far, make_clients, make_state, two_by_two

__all__ = ["dense", "dense_mean", "far", "make_clients", "make_state", "two_by_two"]
