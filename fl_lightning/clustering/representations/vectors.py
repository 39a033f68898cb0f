"""Departments as vectors: what their A-matrices are compared by.

(B, A) and (B G⁻¹, G A) are the same model, so A-matrices can be compared only because everybody starts from one A₀. Raw
A is mostly that start; Euclidean distance on it follows how far a department moved, not where. The direction of A − A₀
is where it moved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.clustering.kmeans import Array, Matrix
from fl_lightning.state import flatten, select

log = logging.getLogger(__name__)

Representation: TypeAlias = Literal["delta", "raw", "subspace"]


def represent(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    representation: Representation = "delta",
    reference: Mapping[str, torch.Tensor] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Matrix:
    """One vector per department from its A-matrices, in sorted department order.

    Args:
        states: {department: state}.
        representation: ``delta`` is A − A₀ scaled to unit length, ``raw`` is A, ``subspace`` the orthogonal projector
            on the rows of A of each layer, so that inner products are ``‖Uᵢᵀ Uⱼ‖²_F / r`` averaged over layers.
        reference: the shared start A₀; wanted for ``delta``.
        dtype: of the result; a vector is computed in fp64 and cast once. The result is the only n × d matrix held.

    Returns:
        Shape (n, d). Under ``delta`` a department that has not moved is a row of zeros.

    Raises:
        ValueError: an unknown representation, or ``delta`` without reference.
    """
    start: Array | None = None
    if representation == "delta":
        if reference is None:
            raise ValueError("representation 'delta' needs reference, the shared start state; got None")
        start = flatten(select(reference, "a")).numpy()
    elif representation not in ("raw", "subspace"):
        raise ValueError(f"representation: got {representation!r}, wanted 'delta', 'raw' or 'subspace'")

    def vectors() -> Iterable[Array]:
        for name in sorted(states):
            factors = select(states[name], "a")
            if representation == "subspace":
                yield _projectors(factors)
            elif start is None:
                yield flatten(factors).numpy()
            else:
                yield _direction(flatten(factors).numpy() - start, name)

    return stack_rows(vectors(), len(states), dtype)


def stack_rows(rows: Iterable[Array], n: int, dtype: npt.DTypeLike = np.float32) -> Matrix:
    """One matrix of shape (n, d) from n vectors of shape (d,), which may be made one at a time."""
    x: Matrix = np.empty((0, 0), dtype)
    for index, row in enumerate(rows):
        if index == 0:
            x = np.empty((n, row.size), dtype)
        x[index] = row
    return x


def _direction(move: Array, name: str) -> Array:
    """A department's move scaled to unit length; a zero move stays zero and is told in the log."""
    length = np.linalg.norm(move)
    if length == 0:
        log.warning("department %s has not moved from the shared start; it is clustered as a zero update", name)
        return move
    direction: Array = move / length
    return direction


def _projectors(factors: Mapping[str, torch.Tensor]) -> Array:
    """Projectors on the row spaces of all A-matrices, each scaled so that its squared norm is 1 / n_layers."""
    flat = []
    for name in sorted(factors):
        basis = np.linalg.qr(factors[name].double().numpy().T)[0]
        flat.append((basis @ basis.T).ravel() / np.sqrt(basis.shape[1] * len(factors)))
    return np.concatenate(flat)


def cosine_similarity(gram: Array) -> Array:
    """Cosine of every pair of rows from their inner products: shape (n, n) in and out.

    Zero rows, up to the rounding of the inner products, have cosine 0, and 1 with themselves.
    """
    norms = gram.diagonal()
    zero = norms <= 1e-14 * norms.max(initial=0.0)
    lengths = np.sqrt(np.where(zero, 1.0, norms))
    cosine: Array = np.clip(gram / lengths[:, None] / lengths[None, :], -1.0, 1.0)
    cosine[zero, :] = cosine[:, zero] = 0.0
    np.fill_diagonal(cosine, 1.0)
    return cosine
