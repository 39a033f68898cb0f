"""Relative error of an aggregation: the distance of a low-rank result from the mean of the clients' products.

``‖Σ w_c s_c B_c A_c − s B̄ Ā‖_F / ‖Σ w_c s_c B_c A_c‖_F`` per layer, from Gram matrices of the stacked factors in fp64.
Averaging the factors loses the covariance ``s Σ w_c (B_c − B̄)(A_c − Ā)``, which is zero if clients share A or share B,
as with a frozen A (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from fl_lightning.linalg.factors import Product, common_scaling, gather, pair_names, product_norm


class RelativeError(NamedTuple):
    """Error by layer, and over all layers as one vector."""

    layers: dict[str, float]
    overall: float


def relative(errors: Mapping[str, float], norms: Mapping[str, float]) -> RelativeError:
    """Each layer's error divided by its norm; 0 if both are zero, infinite if only the norm is.

    Example:
        >>> relative({"q": 3.0, "v": 0.0}, {"q": 6.0, "v": 8.0})
        RelativeError(layers={'q': 0.5, 'v': 0.0}, overall=0.3)
    """
    layers = {layer: _ratio(errors[layer], norms[layer]) for layer in norms}
    return RelativeError(layers, _ratio(math.hypot(*(errors[n] for n in norms)), math.hypot(*norms.values())))


def averaging_error(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> RelativeError:
    """Relative error of averaging the factors, before the result is rounded to fp32.

    Args:
        clients: {client: LoRA state}, all of one rank.
        weights: {client: weight}; normalized here.
        scales: the clients' common scale; the ratio does not depend on it.

    Raises:
        ValueError: if names, shapes, ranks or scales differ.

    Example:
        >>> def client(b, a):
        ...     return {"q.lora_A.weight": torch.tensor([[a]]), "q.lora_B.weight": torch.tensor([[b]])}
        >>> error = averaging_error({"x": client(1.0, 3.0), "y": client(3.0, 5.0)}, {"x": 1, "y": 1})
        >>> round(error.overall, 6)  # 9 − 2·4 of 9
        0.111111
    """
    common_scaling(clients, scales)
    department = gather(clients, weights, scales)
    errors, norms = {}, {}
    for layer in department.layers:
        factors = department.factors(layer)
        for client, (up, _) in zip(department.clients, factors, strict=True):
            if up.shape != factors[0].up.shape:
                raise ValueError(
                    f"client {client.name}, layer {layer}: expected rank {factors[0].up.shape[1]} as for client "
                    f"{department.clients[0].name}, got {up.shape[1]}; factors are averaged"
                )
        mean = department.mean(factors)
        centered = department.stack([Product(up - mean.up, down - mean.down) for up, down in factors])
        product = department.stack(factors)
        errors[layer], norms[layer] = product_norm(centered), product_norm(product)
    return relative(errors, norms)


def result_error(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float,
    result: Mapping[str, torch.Tensor],
    scale: float,
) -> RelativeError:
    """Relative distance of any LoRA state from the clients' mean product; below about 1e-8 it is a rounding error.

    Args:
        clients: {client: LoRA state}; ranks may differ.
        weights: {client: weight}; normalized here.
        scales: s_c per client, or one for all.
        result: a state of any rank.
        scale: s of the result.

    Raises:
        ValueError: if names or in and out shapes differ.

    Example:
        >>> x = {"q.lora_A.weight": torch.tensor([[1.0]]), "q.lora_B.weight": torch.tensor([[4.0]])}
        >>> result_error({"x": x}, {"x": 1}, 2.0, x, scale=1.0).overall  # 8 − 4 of 8
        0.5
    """
    department = gather(clients, weights, scales)
    if pair_names(result) != department.layers:
        name = min(result.keys() ^ department.clients[0].state.keys())
        where = "the result" if name in result else "the clients' states"
        raise ValueError(f"{name}: expected equal names in the result and the clients' states, got it in {where} only")
    errors, norms = {}, {}
    for layer, names in department.layers.items():
        whole = department.stack(department.factors(layer))
        up, down = (result[name].detach().to("cpu", torch.float64) for name in (names.b, names.a))
        shape, expected = (*up.shape[:1], *down.shape[1:]), (whole.up.shape[0], whole.down.shape[1])
        if shape != expected or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"result, layer {layer}: expected B (out, r) and A (r, in) with (out, in) {expected}, got "
                f"B {tuple(up.shape)} and A {tuple(down.shape)}"
            )
        difference = Product(torch.cat([whole.up, -scale * up], dim=1), torch.cat([whole.down, down]))
        errors[layer], norms[layer] = product_norm(difference), product_norm(whole)
    return relative(errors, norms)


def _ratio(error: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if error == 0 else math.inf
    return error / norm
