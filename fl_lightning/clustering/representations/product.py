"""Departments by the effect of their adapters: the dense updates B A, compared without forming them.

``⟨B_i A_i, B_j A_j⟩ = tr((B_iᵀ B_j)(A_j A_iᵀ))`` needs r × r matrices only (see `fl_lightning.linalg.factors`). The
product is the model itself: it does not change under (B, A) → (B G⁻¹, G A), and ranks may differ. It needs B, which is
not always shared, and in early rounds, when B is near zero, it is noise times a shared start.
"""

from __future__ import annotations

import logging

import numpy as np

from fl_lightning.clustering.dissimilarity import Dissimilarity, cosine_similarity, from_gram
from fl_lightning.clustering.partition import Array
from fl_lightning.clustering.representations.factors import States
from fl_lightning.linalg.factors import gather
from fl_lightning.state import select

log = logging.getLogger(__name__)

_ZERO = 1e-28
"""A product counts as zero if its squared norm is at most this share of the largest one."""


def product(states: States) -> Dissimilarity:
    """``d_ij = 1 − k_ij / sqrt(k_ii k_jj)``, ``k_ij = Σ_layers ⟨B_i A_i, B_j A_j⟩``: the cosine of the dense updates.

    A scaling s of a department has no effect, provided that it is the same for all of its layers. A zero update is a
    zero vector, and a warning is logged.

    Args:
        states: {name: state with both factors of every layer}; r may differ, in_features and out_features may not.

    Raises:
        ValueError: no states, a factor that is missing or does not fit, or NaN or infinity.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]])
        >>> states = {"hr": {"lora_A": a, "lora_B": b}, "it": {"lora_A": 2 * a, "lora_B": -b}}
        >>> product(states).gram
        array([[ 1., -1.],
               [-1.,  1.]])
    """
    factors = {name: select(state, "all") for name, state in states.items()}
    department = gather(factors, dict.fromkeys(factors, 1.0))
    if not department.layers:
        raise ValueError(f"{min(states)}: expected lora_A and lora_B of a layer among its tensors, got none")
    gram = np.zeros((len(states), len(states)))
    for layer in department.layers:
        pairs = department.factors(layer)
        gram += inner_products([p.up.numpy() for p in pairs], [p.down.numpy() for p in pairs])
    cosine = cosine_similarity(gram, zero=_ZERO)
    for index, name in enumerate(sorted(states)):
        if gram[index, index] <= _ZERO * gram.diagonal().max():
            log.warning("%s has a zero product BA; it is compared as a zero update", name)
            cosine[index, index] = 0.0
    return from_gram(sorted(states), cosine)


def inner_products(ups: list[Array], downs: list[Array]) -> Array:
    """``⟨B_i A_i, B_j A_j⟩`` of all pairs: shape (n, n), from B_i of shape (out, r_i) and A_i of shape (r_i, in).

    Example:
        >>> inner_products([np.array([[1.0], [2.0]])], [np.array([[3.0, 4.0]])]).tolist()  # [[3, 4], [6, 8]]
        [[125.0]]
    """
    owner = np.repeat(np.arange(len(ups)), [down.shape[0] for down in downs])
    all_ups, all_downs = np.concatenate(ups, axis=1), np.concatenate(downs, axis=0)
    products = np.zeros((len(ups), len(ups)))
    for i, (up, down) in enumerate(zip(ups, downs, strict=True)):
        terms = ((up.T @ all_ups) * (down @ all_downs.T)).sum(axis=0)
        products[i] = np.bincount(owner, terms, minlength=len(ups))
    return products
