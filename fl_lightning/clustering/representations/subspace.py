"""Departments as subspaces: the span of the rows of their A-matrices, in any basis.

Hu et al. 2021, "LoRA" (arXiv 2106.09685), section 7.2, compare adapters by ``‖U_i U_jᵀ‖²_F / min(r_i, r_j)`` with U
orthonormal rows. Edelman, Arias & Smith 1998 (arXiv physics/9806030) give the geometry: with θ the principal angles it
is ``Σ cos² θ / r``. It does not change under A → G A, and ranks may differ.

It is the inner product of the projectors Uᵀ U, but those are in_features × in_features matrices. The products of bases
are r × r.

The rows of A span mostly what the rows of the start A₀ span, so plain subspaces of departments that trained little are
all alike. The residual ``A (I − P₀)``, P₀ the projector on the rows of A₀, spans what training added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fl_lightning.clustering.dissimilarity import Dissimilarity, from_dissimilarity, from_gram
from fl_lightning.clustering.partition import Array
from fl_lightning.clustering.representations.factors import States, a_names
from fl_lightning.state import problem_with, select


def subspace(states: States) -> Dissimilarity:
    """``d_ij = 1 − ‖U_i U_jᵀ‖²_F / min(r_i, r_j)``, U orthonormal bases of the rows of A, averaged over layers.

    If all ranks are equal, these are inner products of projectors, and the result has their Gram matrix. If ranks
    differ, they are not inner products: a line is at distance 0 from every plane that contains it.

    Args:
        states: {name: state}; r may differ, in_features may not.

    Raises:
        ValueError: no states, A-matrices that differ in names or width, or NaN or infinity.

    Example:
        >>> states = {"hr": {"lora_A": torch.eye(3)[:2]}, "it": {"lora_A": torch.eye(3)[1:]}}
        >>> subspace(states).dissimilarity.round(9)
        array([[0. , 0.5],
               [0.5, 0. ]])
    """
    return _compare(states, None)


def subspace_residual(states: States, *, reference: Mapping[str, torch.Tensor]) -> Dissimilarity:
    """The same on the rows of ``A (I − P₀)``; a layer that stays in the row space of A₀ contributes a zero vector.

    Args:
        states: {name: state}.
        reference: the shared start, A₀.

    Raises:
        ValueError: as for `subspace`, or the reference does not fit.

    Example:
        >>> start = {"lora_A": torch.tensor([[1.0, 0.0, 0.0]])}
        >>> rows = {"hr": [1.0, 0.1, 0.0], "it": [1.0, 0.0, 0.1], "ops": [5.0, 0.2, 0.0]}
        >>> states = {name: {"lora_A": torch.tensor([row])} for name, row in rows.items()}
        >>> subspace_residual(states, reference=start).dissimilarity[0].round(9)
        array([0., 1., 0.])
    """
    missing = [name for name in a_names(states) if name not in select(reference, "a")]
    if missing:
        raise ValueError(f"reference: expected the shared start of all A-matrices, got none of {missing[0]}")
    return _compare(states, reference)


def _compare(states: States, reference: Mapping[str, torch.Tensor] | None) -> Dissimilarity:
    names, layers = sorted(states), a_names(states)
    similarity, equal_ranks = np.zeros((len(names), len(names))), True
    for layer in layers:
        start = None if reference is None else _rows(reference[layer], "reference", layer)
        origin = None if start is None else _basis(start, _rounding(start, reference, layer))
        bases: list[Array] = []
        for name in names:
            a = _rows(states[name][layer], name, layer)
            width = (bases[0] if bases else a if origin is None else origin).shape[1]
            if a.shape[1] != width:
                raise ValueError(f"{name}: {layer}: expected {width} columns as in the others, got {a.shape[1]}")
            residual = a if origin is None else a - (a @ origin.T) @ origin
            bases.append(_basis(residual, _rounding(a, states[name], layer)))
        ranks = [len(basis) for basis in bases]
        similarity += overlaps(bases) / len(layers)
        equal_ranks = equal_ranks and len({rank for rank in ranks if rank}) <= 1
    if equal_ranks:
        return from_gram(names, similarity)
    norms = similarity.diagonal()
    return from_dissimilarity(names, (norms[:, None] + norms[None, :]) / 2 - similarity)


def overlaps(bases: Sequence[Array]) -> Array:
    """``‖U_i U_jᵀ‖²_F / min(r_i, r_j)`` of orthonormal rows U_i, shape (r_i, in_features): (n, n). 0 if a rank is 0.

    Example:
        >>> overlaps([np.eye(3)[:2], np.eye(3)[1:2]]).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    ranks = np.array([len(basis) for basis in bases])
    owner, stacked = np.repeat(np.arange(len(bases)), ranks), np.concatenate(bases)
    shared = np.zeros((len(bases), len(bases)))
    for i, basis in enumerate(bases):
        squares = ((basis @ stacked.T) ** 2).sum(axis=0)
        shared[i] = np.bincount(owner, squares, minlength=len(bases))
    shares: Array = shared / np.maximum(np.minimum(ranks[:, None], ranks[None, :]), 1)
    return shares


def _rows(tensor: torch.Tensor, name: str, layer: str) -> Array:
    """A in fp64, shape (r, in_features)."""
    if problem := problem_with({layer: tensor}, {layer: tensor}):
        raise ValueError(f"{name}: {problem}")
    if tensor.ndim != 2:
        raise ValueError(f"{name}: {layer}: expected shape (r, in_features), got {tuple(tensor.shape)}")
    rows: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return rows


def _rounding(a: Array, state: Mapping[str, torch.Tensor] | None, layer: str) -> float:
    """Bound on the rounding errors of A, as a Frobenius norm: directions with smaller singular values are noise."""
    eps = torch.finfo(torch.float64 if state is None else state[layer].dtype).eps
    return 2 * eps * math.sqrt(float((a**2).sum()))


def _basis(rows: Array, smallest: float) -> Array:
    """Orthonormal basis of the row space, shape (rank, in_features), from singular values above `smallest`."""
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    basis: Array = right[values > smallest]
    return basis
