"""Mixing a department's state with the average of its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from fl_lightning.state import LoraState, is_lora_a


def mix_with_cluster_average(
    state: Mapping[str, torch.Tensor],
    cluster_state: Mapping[str, torch.Tensor],
    mixing_ratio: float = 0.3,
    *,
    mix: Literal["a", "all"] = "a",
) -> LoraState:
    """Pull a state towards its cluster's: ``(1 − mixing_ratio) θ + mixing_ratio θ_cluster``.

    Args:
        state: θ, one department's state.
        cluster_state: θ_cluster, the example-weighted mean over the departments of its cluster.
        mixing_ratio: in [0, 1]; 0 returns θ, 1 the cluster state.
        mix: ``a`` mixes the A-matrices and keeps B department-specific, ``all`` mixes both.

    Returns:
        A new state, fp32 on the CPU, names as in `state`.

    Raises:
        ValueError: if the ratio is out of range, `mix` is unknown, or the states do not match.

    Example:
        >>> mixed = mix_with_cluster_average({"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([2.0])}, 0.25)
        >>> mixed["lora_A"].item()
        1.25
    """
    if not 0 <= mixing_ratio <= 1:
        raise ValueError(f"mixing_ratio: expected a number in [0, 1], got {mixing_ratio}")
    if mix not in ("a", "all"):
        raise ValueError(f"mix: expected 'a' or 'all', got {mix!r}")
    mixed: LoraState = {}
    for name, tensor in state.items():
        theta = tensor.detach().to("cpu", torch.float64)
        if mix == "all" or is_lora_a(name):
            if name not in cluster_state or cluster_state[name].shape != tensor.shape:
                got = tuple(cluster_state[name].shape) if name in cluster_state else "none"
                raise ValueError(f"{name}: expected shape {tuple(tensor.shape)} in the cluster state, got {got}")
            theta = theta + mixing_ratio * (cluster_state[name].detach().to("cpu", torch.float64) - theta)
        mixed[name] = theta.to(torch.float32)
    return mixed
