"""Algebra on adapters of any rank: concatenate, add, resize, distance.

A state in SVD form has ``B = U sqrt(S)`` and ``A = sqrt(S) Vᵀ`` for ``ΔW = U S Vᵀ``, largest values first: its first r
columns of B and rows of A are the nearest product of rank r (Eckart and Young 1936). Layers may differ in rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from fl_lightning.linalg.factors import SVD, Product, pair_names, product_norm, svd
from fl_lightning.linalg.truncation import Layer
from fl_lightning.state import LoraState, snapshot


def concatenate_adapters(
    states: Sequence[Mapping[str, torch.Tensor]], scales: Sequence[float] | None = None
) -> LoraState:
    """One state whose product is ``Σ s_i B_i A_i``: factors concatenated along the rank, scales applied to B.

    Args:
        states: of any ranks, with the same layers, in and out shapes; a single one with scale 1 is returned unchanged.
        scales: s_i; None means all 1.

    Returns:
        A state of rank Σ r_i, in the states' dtype.

    Example:
        >>> x = {"q.lora_A.weight": torch.tensor([[1.0]]), "q.lora_B.weight": torch.tensor([[4.0]])}
        >>> {name: tensor.tolist() for name, tensor in concatenate_adapters([x, x], [1.0, 0.5]).items()}
        {'q.lora_A.weight': [[1.0], [1.0]], 'q.lora_B.weight': [[4.0, 2.0]]}
    """
    factors = scales or [1.0] * len(states)
    if len(states) == 1 and factors[0] == 1.0:
        return dict(states[0])
    result: LoraState = {}
    for names in pair_names(states[0]).values():
        result[names.a] = torch.cat([state[names.a] for state in states])
        result[names.b] = torch.cat([s * state[names.b] for s, state in zip(factors, states, strict=True)], 1)
    return dict(sorted(result.items()))


def to_svd_form(layers: Mapping[str, Layer]) -> LoraState:
    """A decomposed product as a state in SVD form, fp32; a layer's rank is the number of its singular values."""
    state: LoraState = {}
    for names, (left, values, right) in layers.values():
        root = values.sqrt()
        state[names.b], state[names.a] = left * root, root[:, None] * right
    return snapshot(state)


def from_svd_form(state: Mapping[str, torch.Tensor]) -> dict[str, Layer]:
    """The inverse of `to_svd_form`, in fp64, up to the rounding to fp32."""
    layers = {}
    for layer, names in pair_names(state).items():
        up, down = state[names.b].double(), state[names.a].double()
        ups, downs = up.norm(dim=0), down.norm(dim=1)
        layers[layer] = Layer(names, SVD(up / ups, ups * downs, down / downs[:, None]))
    return layers


def add_products(states: Sequence[Mapping[str, torch.Tensor]]) -> LoraState:
    """``Σ B_i A_i`` in SVD form: exact up to rounding, of the rank that the sum has.

    Example:
        >>> x = {"q.lora_A.weight": torch.tensor([[1.0, 0.0]]), "q.lora_B.weight": torch.tensor([[4.0], [0.0]])}
        >>> [t.shape for t in add_products([x, x]).values()]
        [torch.Size([1, 2]), torch.Size([2, 1])]
    """
    joined = concatenate_adapters([{n: t.double() for n, t in state.items()} for state in states])
    pairs = pair_names(joined)
    return to_svd_form({layer: Layer(n, svd(Product(joined[n.b], joined[n.a]))) for layer, n in pairs.items()})


def product_distance(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """``‖B₁A₁ − B₂A₂‖_F`` over all layers, for any ranks."""
    difference = concatenate_adapters([first, second], [1.0, -1.0])
    names = pair_names(difference).values()
    return math.hypot(*(product_norm(Product(difference[n.b], difference[n.a])) for n in names))


def pad_to_common_rank(state: Mapping[str, torch.Tensor]) -> LoraState:
    """The same products, zero-padded to the highest rank of all layers, as adapter files require.

    Example:
        >>> ragged = {"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.ones(3, 2)}
        >>> ragged |= {"v.lora_A": torch.ones(1, 3), "v.lora_B": torch.ones(1, 1)}
        >>> [tuple(t.shape) for t in pad_to_common_rank(ragged).values()]
        [(2, 3), (3, 2), (2, 3), (1, 2)]
    """
    pairs = pair_names(state).values()
    rank = max(state[names.a].shape[0] for names in pairs)
    padded = dict(state)
    for a, b in pairs:
        missing = rank - state[a].shape[0]
        padded[a] = torch.nn.functional.pad(state[a], (0, 0, 0, missing))
        padded[b] = torch.nn.functional.pad(state[b], (0, missing))
    return padded


def resize_like(state: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> LoraState:
    """Uninitialized tensors with the layers of `like`, each at the rank of the state's A, to check names and shapes.

    Example:
        >>> like = {"q.lora_A": torch.ones(8, 3), "q.lora_B": torch.ones(5, 8)}
        >>> [tuple(t.shape) for t in resize_like({"q.lora_A": torch.ones(2, 3)}, like).values()]
        [(2, 3), (5, 2)]
    """
    resized: LoraState = {}
    for a, b in pair_names(like).values():
        rank = state[a].shape[0] if a in state and state[a].ndim else 0
        resized[a], resized[b] = like[a].new_empty(rank, like[a].shape[1]), like[b].new_empty(like[b].shape[0], rank)
    return resized
