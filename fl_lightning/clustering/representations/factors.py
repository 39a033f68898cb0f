"""Departments as vectors of A-matrices: ``raw`` A, and ``delta``, the direction of A − A₀.

(B, A) and (B G⁻¹, G A) are the same model; these two representations tell them apart, so they are meaningful only if
everybody starts from one A₀. Raw A is mostly that start, and Euclidean distance on it follows how far a department
moved, not in which direction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.clustering.dissimilarity import Dissimilarity, from_rows
from fl_lightning.clustering.partition import Array
from fl_lightning.state import check_same_layout, flatten, select

log = logging.getLogger(__name__)

States: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""{name: LoRA state}."""


def raw(states: States, *, seed: int | None = None) -> Dissimilarity:
    """``x = A``, all layers in one vector; ``d_ij = ‖A_i − A_j‖² / 2``.

    Args:
        states: {name: state}.
        seed: seed of the random projection of more than `dissimilarity.EXACT_ROWS` states; None compares all exactly.

    Raises:
        ValueError: no states, states that differ in names or shapes, or NaN or infinity.

    Example:
        >>> raw({"hr": {"lora_A": torch.tensor([[5.0, 0.0]])}, "it": {"lora_A": torch.tensor([[3.0, 0.0]])}}).distance
        array([[0., 2.],
               [2., 0.]])
    """
    return from_rows(sorted(states), a_vectors(states), seed=seed)


def delta(states: States, *, reference: Mapping[str, torch.Tensor], seed: int | None = None) -> Dissimilarity:
    """``x = (A − A₀) / ‖A − A₀‖``, all layers in one vector; ``d_ij = 1 − cos``. A state that did not move is zero.

    Args:
        states: {name: state}.
        reference: the shared start, A₀.
        seed: as for `raw`.

    Raises:
        ValueError: no states, states that differ from each other or from the reference, or NaN or infinity.

    Example:
        >>> start = {"lora_A": torch.tensor([[1.0, 1.0]])}
        >>> states = {"hr": {"lora_A": torch.tensor([[3.0, 1.0]])}, "it": {"lora_A": torch.tensor([[1.0, 5.0]])}}
        >>> delta(states, reference=start).dissimilarity
        array([[0., 1.],
               [1., 0.]])
    """
    return from_rows(sorted(states), a_vectors(states, reference), seed=seed)


def a_vectors(states: States, reference: Mapping[str, torch.Tensor] | None = None) -> npt.NDArray[np.float32]:
    """One fp32 vector for each state from its A-matrices, in sorted order of names: shape (n, d).

    Args:
        states: {name: state}.
        reference: the shared start A₀; if it is given, vectors are A − A₀ scaled to unit length, and zero if A = A₀.

    Raises:
        ValueError: no states, or A-matrices that differ in names or shapes.
    """
    names = a_names(states)
    factors = [{n: states[name][n] for n in names} for name in sorted(states)]
    start = None if reference is None else select(reference, "a")
    try:
        check_same_layout([*([] if start is None else [start]), *factors])
    except ValueError as error:
        hint = "'subspace' and 'product' allow different ranks"
        raise ValueError(f"representations raw and delta compare A-matrices entry by entry: {error}; {hint}") from None
    vectors: Iterable[Array] = (flatten(a).numpy() for a in factors)
    if start is not None:
        origin = flatten(start).numpy()
        vectors = (_direction(a - origin, name) for a, name in zip(vectors, sorted(states), strict=True))
    return stack_rows(vectors, len(states))


def stack_rows(rows: Iterable[Array], n: int) -> npt.NDArray[np.float32]:
    """One fp32 matrix of shape (n, d) from n vectors of shape (d,), each rounded once; no list of them is held."""
    x: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)
    for index, row in enumerate(rows):
        if index == 0:
            x = np.empty((n, row.size), np.float32)
        x[index] = row
    return x


def a_names(states: States) -> list[str]:
    """Names of the A-matrices, which all states must have, sorted.

    Raises:
        ValueError: no states, no A-matrix, or states with different ones.
    """
    if not states:
        raise ValueError("states: expected at least one, got none")
    first = min(states)
    names = sorted(select(states[first], "a"))
    if not names:
        raise ValueError(f"{first}: expected a lora_A among its tensors, got none")
    for name in sorted(states):
        if odd := sorted(select(states[name], "a").keys() ^ set(names)):
            raise ValueError(f"{name}: expected the same tensors as {first}; {odd[0]} is in one of both only")
    return names


def _direction(move: Array, name: str) -> Array:
    """A move scaled to unit length. A zero move stays zero, and a warning is logged."""
    length = np.linalg.norm(move)
    if length == 0:
        log.warning("%s has not moved from the shared start; it is clustered as a zero update", name)
        return move
    direction: Array = move / length
    return direction
