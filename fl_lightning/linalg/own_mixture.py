"""What a client's own state holds besides its factors: what weighs them against the adapter beside it.

=======================================  ===========================================================  ================
name in the state                        tensor                                                       method
=======================================  ===========================================================  ================
``apfl_alpha``                           α of the client, shape (1,)                                  APFL
``<layer>.fedalt_gate.weight``           W_G of ``p = softmax(W_G x)``, shape (2, in_features): the   FedALT
                                         weights of the own product and of the one beside it
``<layer>.rest_A.weight``, ``…rest_B…``  the product beside it, in the adapter that a client uses     FedALT
=======================================  ===========================================================  ================

These tensors go where the factors go: they train with them, and they are in journals, checkpoints and the site's store.
Neither α nor gates are averaged, nor do they leave the client. An adapter with gates is no plain LoRA adapter: only a
`LoraCohort` computes with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.linalg.factors import pair_names
from fl_lightning.state import LoraState, is_lora_a, is_lora_b

ALPHA = "apfl_alpha"
"""Name of a client's α."""
GATE = ".fedalt_gate.weight"
"""After the name of a layer: its gate."""


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
    return {name: state[name] for name in state if name == ALPHA or name.endswith(GATE)}


def alpha_of(state: Mapping[str, torch.Tensor]) -> float | None:
    """A client's α; None if it has none."""
    return float(state[ALPHA]) if ALPHA in state else None


def is_gated(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the weights depend on a layer's input."""
    return any(name.endswith(GATE) for name in state)


def gates_like(initial: Mapping[str, torch.Tensor], seed: int | None = None) -> LoraState:
    """A gate for every layer of an adapter.

    Args:
        initial: the adapter.
        seed: of draws from U(−1/√in_features, 1/√in_features), the start of a linear layer in PyTorch, as in the
            paper's code; None gives zeros, which weigh both products alike.

    Example:
        >>> initial = {"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": torch.ones(3, 1)}
        >>> [(name, tuple(gate.shape)) for name, gate in gates_like(initial, seed=1).items()]
        [('q.fedalt_gate.weight', (2, 4))]
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    gates = {
        f"{layer}{GATE}": torch.zeros(2, initial[names.a].shape[1]) for layer, names in pair_names(initial).items()
    }
    for gate in gates.values() if generator is not None else ():
        bound = 1 / math.sqrt(gate.shape[1])
        gate.uniform_(-bound, bound, generator=generator)
    return gates


def rest_of(state: Mapping[str, torch.Tensor]) -> LoraState:
    """(A, B) of the product beside a gated adapter; empty if it has none."""
    names = {name: name.replace("rest_A", "lora_A").replace("rest_B", "lora_B") for name in state}
    return {lora: state[name] for name, lora in names.items() if lora != name}


def own_layout(state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]) -> LoraState:
    """Names and shapes that an own state must have: the factors of `initial`, and of what weighs them what is there.

    Args:
        state: as it was read.
        initial: the adapter from which everybody starts.
    """
    alpha = {ALPHA: torch.empty(1)} if ALPHA in state else {}
    return {**initial, **alpha, **(gates_like(initial) if is_gated(state) else {})}


def used_adapter(
    state: Mapping[str, torch.Tensor], beside: Mapping[str, torch.Tensor], relative_scaling: float = 1.0
) -> LoraState:
    """The adapter that a client uses: its own one, mixed with the one beside it if there is one.

    Args:
        state: an own state. With α the adapter is ``α B_v A_v + (1 − α) B_w A_w``, else ``B_v A_v + B_w A_w``; with
            gates it keeps both products apart.
        beside: (A, B) of the product beside it, at the common scaling; empty for none.
        relative_scaling: of the own adapter: its lora_alpha / r over the common one, times a fixed weight.

    Example:
        >>> one = {"q.lora_A": torch.ones(1, 1), "q.lora_B": torch.ones(1, 1)}
        >>> used_adapter({**one, "apfl_alpha": torch.tensor([0.25])}, one)["q.lora_B"]
        tensor([[0.2500, 0.7500]])
    """
    alpha, own = alpha_of(state), factors_of(state)
    if is_gated(state):
        rest = {name.replace("lora_A", "rest_A").replace("lora_B", "rest_B"): beside[name] for name in beside}
        gated = {**concatenate_adapters([own], [relative_scaling]), **weights_of(state), **rest}
        return dict(sorted(gated.items()))
    if alpha is not None:
        relative_scaling *= alpha
    if not beside:
        return concatenate_adapters([own], [relative_scaling])
    return concatenate_adapters([own, beside], [relative_scaling, 1.0 if alpha is None else 1 - alpha])
