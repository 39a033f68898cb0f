"""Departments as vectors: ``raw`` A-matrices, and ``delta``, the direction in which they moved.

(B, A) and (B G⁻¹, G A) are the same model: these two see the difference, and mean something only where everybody starts
from one A₀. `fl_lightning.clustering.representations.vectors` makes the vectors; one Gram product makes the relation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fl_lightning.clustering.dissimilarity import Relation, from_gram
from fl_lightning.clustering.kmeans import gram_matrices
from fl_lightning.clustering.representations.vectors import Representation, represent
from fl_lightning.state import check_same_layout, select

States = Mapping[str, Mapping[str, torch.Tensor]]
"""{name: LoRA state}."""


def raw(states: States) -> Relation:
    """``x = A``, all layers in one vector; ``d_ij = ‖A_i − A_j‖² / 2``. It follows how far a department moved.

    Raises:
        ValueError: no states, states that differ in names or shapes, or NaN or infinity.

    Example:
        >>> raw({"hr": {"lora_A": torch.tensor([[5.0, 0.0]])}, "it": {"lora_A": torch.tensor([[3.0, 0.0]])}}).distance
        array([[0., 2.],
               [2., 0.]])
    """
    return _relation(states, "raw", None)


def delta(states: States, *, reference: Mapping[str, torch.Tensor]) -> Relation:
    """``x = (A − A₀) / ‖A − A₀‖``, all layers in one vector; ``d_ij = 1 − cos``. Who has not moved is a zero.

    Args:
        states: {name: state}.
        reference: the shared start, A₀.

    Raises:
        ValueError: no states, states that differ from each other or from the reference, or NaN or infinity.

    Example:
        >>> start = {"lora_A": torch.tensor([[1.0, 1.0]])}
        >>> states = {"hr": {"lora_A": torch.tensor([[3.0, 1.0]])}, "it": {"lora_A": torch.tensor([[1.0, 5.0]])}}
        >>> delta(states, reference=start).dissimilarity
        array([[0., 1.],
               [1., 0.]])
    """
    return _relation(states, "delta", reference)


def _relation(states: States, representation: Representation, reference: Mapping[str, torch.Tensor] | None) -> Relation:
    names = a_names(states)
    factors = [{n: states[name][n] for n in names} for name in sorted(states)]
    start = [] if reference is None else [select(reference, "a")]
    try:
        check_same_layout([*start, *factors])
    except ValueError as error:
        hint = "ranks may differ under 'subspace' and 'product'"
        raise ValueError(f"{representation} compares A-matrices entry by entry: {error}; {hint}") from None
    x = represent(states, representation, reference, dtype=np.float32)
    centred, gram = gram_matrices(x)
    return from_gram(sorted(states), gram, centred)


def a_names(states: States) -> list[str]:
    """Names of the A-matrices that all states have, sorted.

    Raises:
        ValueError: no states, no A-matrix, or states that do not have the same ones.
    """
    if not states:
        raise ValueError("states: got none, wanted at least one")
    first = min(states)
    names = sorted(select(states[first], "a"))
    if not names:
        raise ValueError(f"{first}: got no lora_A among its tensors, wanted at least one")
    for name in sorted(states):
        if odd := sorted(select(states[name], "a").keys() ^ set(names)):
            raise ValueError(f"{name}: {odd[0]} is not in the states of both {first} and {name}; wanted equal names")
    return names
