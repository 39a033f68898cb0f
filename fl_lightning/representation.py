"""Departments as vectors: what their A-matrices are compared by.

(B, A) and (B G⁻¹, G A) are the same model, so A-matrices can be compared only because everybody starts from one A₀. Raw
A is mostly that start; Euclidean distance on it follows how far a department moved, not where. The direction of A − A₀
is where it moved.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch

from fl_lightning.kmeans import Array
from fl_lightning.state import flatten, select

log = logging.getLogger(__name__)

Representation: TypeAlias = Literal["delta", "raw", "subspace"]


def represent(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    representation: Representation = "delta",
    reference: Mapping[str, torch.Tensor] | None = None,
) -> Array:
    """One vector per department from its A-matrices, in sorted department order.

    Args:
        states: {department: state}.
        representation: ``delta`` is A − A₀ scaled to unit length, ``raw`` is A, ``subspace`` the orthogonal projector
            on the rows of A of each layer, so that inner products are ``‖Uᵢᵀ Uⱼ‖²_F / r`` averaged over layers.
        reference: the shared start A₀; wanted for ``delta``.

    Returns:
        Shape (n, d), fp64. Under ``delta`` a department that has not moved is a row of zeros.

    Raises:
        ValueError: an unknown representation, or ``delta`` without reference.
    """
    names = sorted(states)
    factors = {name: select(states[name], "a") for name in names}
    if representation == "raw":
        return np.stack([flatten(factors[n]).numpy() for n in names])
    if representation == "subspace":
        return np.stack([_projectors(factors[n]) for n in names])
    if representation != "delta":
        raise ValueError(f"representation: got {representation!r}, wanted 'delta', 'raw' or 'subspace'")
    if reference is None:
        raise ValueError("representation 'delta' needs reference, the shared start state; got None")
    start = flatten(select(reference, "a")).numpy()
    rows = np.stack([flatten(factors[n]).numpy() - start for n in names])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    for name, length in zip(names, lengths[:, 0], strict=True):
        if length == 0:
            log.warning("department %s has not moved from the shared start; it is clustered as a zero update", name)
    scaled: Array = rows / np.where(lengths == 0, 1.0, lengths)
    return scaled


def _projectors(factors: Mapping[str, torch.Tensor]) -> Array:
    """Projectors on the row spaces of all A-matrices, each scaled so that its squared norm is 1 / n_layers."""
    flat = []
    for name in sorted(factors):
        basis = np.linalg.qr(factors[name].double().numpy().T)[0]
        flat.append((basis @ basis.T).ravel() / np.sqrt(basis.shape[1] * len(factors)))
    return np.concatenate(flat)


def cosine_similarity(x: Array) -> Array:
    """Cosine of every pair of rows: shape (n, d) in, (n, n) out; zero rows have cosine 0, and 1 with themselves."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(lengths == 0, 1.0, lengths)
    cosine = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(cosine, 1.0)
    return cosine
