"""The mean product, truncated to each client's rank (FlexLoRA, Bai et al. 2024, arXiv 2402.11505).

``ΔW = Σ w_c s_c B_c A_c = U S Vᵀ``, from QR of the stacked factors (``Q_B R_B``, ``Q_A R_A``) and the SVD of the small
``R_B R_Aᵀ``. A client of rank r and scale s gets ``B = U_r sqrt(S_r) / s`` and ``A = sqrt(S_r) V_rᵀ``, the nearest
product of that rank. The error is the norm of the discarded singular values, ``sqrt(Σ_{i>r} S_i²)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from fl_lightning.linalg.approximation_error import RelativeError, relative
from fl_lightning.linalg.factors import SVD, FactorNames, gather, svd
from fl_lightning.state import LoraState, snapshot


class Layer(NamedTuple):
    """The decomposed mean product of one layer."""

    names: FactorNames
    svd: SVD


class LowRank(NamedTuple):
    """A state of a given rank, and its relative truncation error, before rounding to fp32."""

    state: LoraState
    error: RelativeError


def decompose(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> dict[str, Layer]:
    """{layer: SVD of the clients' mean product} in fp64; computed once per department, then `truncate` for each rank.

    Raises:
        ValueError: if names or in and out shapes differ, or a value is not finite.
    """
    department = gather(clients, weights, scales)
    return {layer: Layer(n, svd(department.stack(department.factors(layer)))) for layer, n in department.layers.items()}


def truncate(
    layers: Mapping[str, Layer],
    rank: int,
    scale: float = 1.0,
    spare: Mapping[str, torch.Tensor] | None = None,
) -> LowRank:
    """The nearest state of a rank.

    If the mean product has a lower rank, the remaining columns of B and rows of A are zero, and would stay zero in
    training, since the gradient of each is a multiple of the other. Rows of `spare` in A change no output and let them
    learn.

    Args:
        layers: from `decompose`.
        rank: of the result.
        scale: s of the client that gets it.
        spare: a state of that rank (A is enough) whose last rows of A fill the remaining rows.

    Raises:
        ValueError: if the rank or scale is not positive, or `spare` has no A of the right shape.

    Example:
        >>> x = {"q.lora_A.weight": torch.eye(2), "q.lora_B.weight": torch.tensor([[4.0, 0.0], [0.0, 3.0]])}
        >>> state, error = truncate(decompose({"x": x}, {"x": 1}), rank=1)
        >>> product = state["q.lora_B.weight"] @ state["q.lora_A.weight"]
        >>> round(product[0, 0].item(), 5), round(product[1, 1].item(), 5), round(error.overall, 5)
        (4.0, 0.0, 0.6)
    """
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale: expected a positive finite number, got {scale}")
    state: LoraState = {}
    errors, norms = {}, {}
    for layer, (names, (left, values, right)) in layers.items():
        used = min(rank, len(values))
        root = values[:used].sqrt()
        b = torch.zeros(left.shape[0], rank, dtype=torch.float64)
        a = torch.zeros(rank, right.shape[1], dtype=torch.float64)
        if spare is not None:
            if names.a not in spare or spare[names.a].shape != a.shape:
                got = tuple(spare[names.a].shape) if names.a in spare else "none"
                raise ValueError(f"spare, layer {layer}: expected A of shape {tuple(a.shape)}, got {got}")
            a.copy_(spare[names.a].detach())
        b[:, :used] = left[:, :used] * root / scale
        a[:used] = root[:, None] * right[:used]
        state[names.b], state[names.a] = b, a
        errors[layer], norms[layer] = float(values[used:].norm()), float(values.norm())
    return LowRank(snapshot(state), relative(errors, norms))
