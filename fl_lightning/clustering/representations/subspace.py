"""Departments as subspaces: what the rows of their A-matrices span, whatever basis they are written in.

Hu et al. 2021, "LoRA" (arXiv 2106.09685), section 7.2, compares adapters by ``‖U_iᵀ U_j‖²_F / min(r_i, r_j)``. Edelman,
Arias & Smith 1998 (arXiv physics/9806030) has the geometry: with θ the principal angles it is ``Σ cos² θ / r``. It does
not change under A → G A, and ranks may differ.

The rows of A span mostly what those of the start A₀ do, so that plain subspaces of departments that trained little are
all alike. The residual ``A (I − P₀)``, P₀ the projector on the rows of A₀, spans what training added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fl_lightning.clustering.dissimilarity import Relation, from_dissimilarity, from_gram
from fl_lightning.clustering.kmeans import Array
from fl_lightning.clustering.representations.factors import States, a_names
from fl_lightning.state import problem_with, select


def subspace(states: States) -> Relation:
    """``d_ij = 1 − ‖U_iᵀ U_j‖²_F / min(r_i, r_j)``, U the orthonormal bases of the rows of A, averaged over layers.

    Where all ranks are equal this is a kernel (of projectors), and the relation has its Gram matrix. Where they differ
    it is none: a line is at distance 0 from every plane that holds it.

    Raises:
        ValueError: no states, A-matrices that differ in names or width, or NaN or infinity.

    Example:
        >>> states = {"hr": {"lora_A": torch.eye(3)[:2]}, "it": {"lora_A": torch.eye(3)[1:]}}
        >>> subspace(states).dissimilarity.round(9)
        array([[0. , 0.5],
               [0.5, 0. ]])
    """
    return _relation(states, None)


def subspace_residual(states: States, *, reference: Mapping[str, torch.Tensor]) -> Relation:
    """The same on the rows of ``A (I − P₀)``; a layer that has not left the rows of A₀ is a zero vector there.

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
        raise ValueError(f"reference: got no {missing[0]}, wanted the shared start of all A-matrices")
    return _relation(states, reference)


def _relation(states: States, reference: Mapping[str, torch.Tensor] | None) -> Relation:
    names, layers = sorted(states), a_names(states)
    kernel, equal = np.zeros((len(names), len(names))), True
    for layer in layers:
        start = None if reference is None else _rows(reference[layer], "reference", layer)
        origin = None if start is None else _basis(start, _rounding(start, reference, layer))
        bases: list[Array] = []
        for name in names:
            a = _rows(states[name][layer], name, layer)
            width = (bases[0] if bases else a if origin is None else origin).shape[1]
            if a.shape[1] != width:
                raise ValueError(f"{name}: {layer} has {a.shape[1]} columns, wanted {width} as the others have")
            residual = a if origin is None else a - (a @ origin.T) @ origin
            bases.append(_basis(residual, _rounding(a, states[name], layer)))
        ranks = [len(basis) for basis in bases]
        kernel += overlaps(bases) / len(layers)
        equal = equal and len({rank for rank in ranks if rank}) <= 1
    if equal:
        return from_gram(names, kernel)
    norms = kernel.diagonal()
    return from_dissimilarity(names, (norms[:, None] + norms[None, :]) / 2 - kernel)


def overlaps(bases: Sequence[Array]) -> Array:
    """``‖U_i U_jᵀ‖²_F / min(r_i, r_j)`` of orthonormal rows U_i, shape (r_i, width): (n, n); 0 where a rank is 0.

    Example:
        >>> overlaps([np.eye(3)[:2], np.eye(3)[1:2]]).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    ranks = np.array([len(basis) for basis in bases])
    owner, stacked = np.repeat(np.arange(len(bases)), ranks), np.concatenate(bases)
    found = np.zeros((len(bases), len(bases)))
    for i, basis in enumerate(bases):
        squares = ((basis @ stacked.T) ** 2).sum(axis=0)
        found[i] = np.bincount(owner, squares, minlength=len(bases))
    shared: Array = found / np.maximum(np.minimum(ranks[:, None], ranks[None, :]), 1)
    return shared


def _rows(tensor: torch.Tensor, name: str, layer: str) -> Array:
    """A in fp64, shape (r, in_features)."""
    if problem := problem_with({layer: tensor}, {layer: tensor}):
        raise ValueError(f"{name}: {problem}")
    if tensor.ndim != 2:
        raise ValueError(f"{name}: {layer} has shape {tuple(tensor.shape)}, wanted (r, in_features)")
    rows: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return rows


def _rounding(a: Array, state: Mapping[str, torch.Tensor] | None, layer: str) -> float:
    """A bound on the rounding of A's entries, as a Frobenius norm: what is shorter spans nothing."""
    eps = torch.finfo(torch.float64 if state is None else state[layer].dtype).eps
    return 2 * eps * math.sqrt(float((a**2).sum()))


def _basis(rows: Array, shortest: float) -> Array:
    """Orthonormal rows that span those given, shape (rank, width), from singular values above `shortest`."""
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    basis: Array = right[values > shortest]
    return basis
