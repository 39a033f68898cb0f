"""The mean product, truncated to each client's rank (FlexLoRA, Bai et al. 2024, arXiv 2402.11505).

``ΔW = Σ w_c s_c B_c A_c = U S Vᵀ``, from QR of the stacked factors (``Q_B R_B``, ``Q_A R_A``) and the SVD of the small
``R_B R_Aᵀ``; a client of rank r and scale s gets ``B = U_r sqrt(S_r) / s`` and ``A = sqrt(S_r) V_rᵀ``, the nearest
product of that rank. What it misses is the discarded singular values, ``sqrt(Σ_{i>r} S_i²)``.
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
    """A state of the wanted rank, and what the mean product lost on the way, before rounding to fp32."""

    state: LoraState
    error: RelativeError


def decompose(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> dict[str, Layer]:
    """The clients' mean product by layer in singular vectors, fp64: once for a department, then `truncate` per rank.

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

    Where the mean product has a lower rank than the one wanted, both factors of what is left are zero, and stay so in
    training, since each one's gradient is a multiple of the other. Rows of `spare` in their place change no output and
    can learn.

    Args:
        layers: from `decompose`.
        rank: of the result.
        scale: s of the client that gets it.
        spare: a state (A is enough) of that rank whose last rows of A fill what is left over.

    Raises:
        ValueError: if the rank or scale is not positive, or `spare` has no A of the right shape.
    """
    if rank < 1:
        raise ValueError(f"rank: got {rank}, wanted at least 1")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale: got {scale}, wanted a positive finite number")
    state: LoraState = {}
    errors, norms = {}, {}
    for layer, (names, (left, values, right)) in layers.items():
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        b = torch.zeros(left.shape[0], rank, dtype=torch.float64)
        a = torch.zeros(rank, right.shape[1], dtype=torch.float64)
        if spare is not None:
            if names.a not in spare or spare[names.a].shape != a.shape:
                got = tuple(spare[names.a].shape) if names.a in spare else "none"
                raise ValueError(f"spare, layer {layer}: got A of shape {got}, wanted {tuple(a.shape)}")
            a.copy_(spare[names.a].detach())
        b[:, :kept] = left[:, :kept] * root / scale
        a[:kept] = root[:, None] * right[:kept]
        state[names.b], state[names.a] = b, a
        errors[layer], norms[layer] = float(values[kept:].norm()), float(values.norm())
    return LowRank(snapshot(state), relative(errors, norms))


def truncated_svd(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float,
    rank: int,
    scale: float,
    spare: Mapping[str, torch.Tensor] | None = None,
) -> LowRank:
    """The clients' mean product at one rank: `decompose`, then `truncate`.

    Args:
        clients: {client: LoRA state}; ranks may differ.
        weights: {client: weight}, of any sum.
        scales: s_c per client, or one for all.
        rank: of the result.
        scale: s of the client that gets it.
        spare: as in `truncate`.

    Returns:
        The state, fp32, and the relative truncation error by layer and overall.

    Raises:
        ValueError: as the two functions.

    Example:
        >>> x = {"q.lora_A.weight": torch.eye(2), "q.lora_B.weight": torch.tensor([[4.0, 0.0], [0.0, 3.0]])}
        >>> state, error = truncated_svd({"x": x}, {"x": 1}, 1.0, rank=1, scale=1.0)
        >>> product = state["q.lora_B.weight"] @ state["q.lora_A.weight"]
        >>> round(product[0, 0].item(), 5), round(product[1, 1].item(), 5), round(error.overall, 5)
        (4.0, 0.0, 0.6)
    """
    return truncate(decompose(clients, weights, scales), rank, scale, spare)
