"""What a client's own state holds besides its factors: what weighs them against the adapter beside it.

==========================  ==========================================  ==============================================
name in the state           tensor                                      method
==========================  ==========================================  ==============================================
``apfl_alpha``              α of the client, shape (1,)                 APFL, ``personal.apfl_rate``
==========================  ==========================================  ==============================================

These tensors go where the factors go: they train with them, and they are in journals, checkpoints and the site's store.
None of them is averaged or leaves the client.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.state import LoraState, is_lora_a, is_lora_b

ALPHA = "apfl_alpha"
"""Name of a client's α."""


def factors_of(state: Mapping[str, torch.Tensor]) -> LoraState:
    """The factors of an own state, without what weighs them.

    Example:
        >>> own = {"apfl_alpha": torch.tensor([0.5]), "q.lora_A": torch.ones(1), "q.lora_B": torch.ones(1)}
        >>> list(factors_of(own))
        ['q.lora_A', 'q.lora_B']
    """
    return {name: state[name] for name in state if is_lora_a(name) or is_lora_b(name)}


def weights_of(state: Mapping[str, torch.Tensor]) -> LoraState:
    """What weighs the factors of an own state; empty where a fixed number does, or nothing.

    Example:
        >>> weights_of({"apfl_alpha": torch.tensor([0.5]), "q.lora_A": torch.ones(1)})
        {'apfl_alpha': tensor([0.5000])}
    """
    return {name: state[name] for name in state if not (is_lora_a(name) or is_lora_b(name))}


def alpha_of(state: Mapping[str, torch.Tensor]) -> float | None:
    """A client's α; None if it has none."""
    return float(state[ALPHA]) if ALPHA in state else None


def own_layout(state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]) -> LoraState:
    """Names and shapes that an own state must have: the factors of `initial`, and of what weighs them what is there.

    Args:
        state: as it was read.
        initial: the adapter from which everybody starts.
    """
    return {**initial, **({ALPHA: torch.empty(1)} if ALPHA in state else {})}


def used_adapter(
    state: Mapping[str, torch.Tensor], beside: Mapping[str, torch.Tensor], relative_scaling: float = 1.0
) -> LoraState:
    """The adapter that a client uses: its own one, mixed with the one beside it if there is one.

    Args:
        state: an own state. With α the adapter is ``α B_v A_v + (1 − α) B_w A_w``, else ``B_v A_v + B_w A_w``.
        beside: (A, B) of the product beside it, at the common scaling; empty for none.
        relative_scaling: of the own adapter: its lora_alpha / r over the common one, times a fixed weight.

    Example:
        >>> one = {"q.lora_A": torch.ones(1, 1), "q.lora_B": torch.ones(1, 1)}
        >>> used_adapter({**one, "apfl_alpha": torch.tensor([0.25])}, one)["q.lora_B"]
        tensor([[0.2500, 0.7500]])
    """
    alpha = alpha_of(state)
    own = [factors_of(state)]
    if alpha is not None:
        relative_scaling *= alpha
    if not beside:
        return concatenate_adapters(own, [relative_scaling])
    return concatenate_adapters([*own, beside], [relative_scaling, 1.0 if alpha is None else 1 - alpha])
