"""Relative error of an aggregation: how far a low-rank result is from the mean of the clients' products.

``‖Σ w_c s_c B_c A_c − s B̄ Ā‖_F / ‖Σ w_c s_c B_c A_c‖_F`` per layer, from Grams of the stacked factors in fp64. What
factor averaging loses is the covariance ``s Σ w_c (B_c − B̄)(A_c − Ā)``: zero where clients share A or share B, as with
a frozen A (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from fl_lightning.linalg.factors import Product, common_scaling, gather, pair_names, product_norm


class RelativeError(NamedTuple):
    """Error by layer, and over all layers taken as one long vector."""

    layers: dict[str, float]
    overall: float


def relative(errors: Mapping[str, float], norms: Mapping[str, float]) -> RelativeError:
    """Each layer's error over its norm; 0 where both are zero, infinite where only the norm is.

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
    """What averaging of the factors loses, before the result is rounded to fp32.

    Args:
        clients: {client: LoRA state}, all of one rank.
        weights: {client: weight}, of any sum.
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
                    f"client {client.name}, layer {layer}: got rank {up.shape[1]}, wanted {factors[0].up.shape[1]} as "
                    f"client {department.clients[0].name} has (factors are averaged)"
                )
        mean = department.mean(factors)
        around = department.stack([Product(up - mean.up, down - mean.down) for up, down in factors])
        whole = department.stack(factors)
        errors[layer], norms[layer] = product_norm(around), product_norm(whole)
    return relative(errors, norms)


def result_error(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float,
    result: Mapping[str, torch.Tensor],
    scale: float,
) -> RelativeError:
    """How far any LoRA state is from the clients' mean product; below about 1e-8 the number is rounding.

    Args:
        clients: {client: LoRA state}; ranks may differ.
        weights: {client: weight}, of any sum.
        scales: s_c per client, or one for all.
        result: the state that shall stand for all of them, of any rank.
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
        odd = min(result.keys() ^ department.clients[0].state.keys())
        raise ValueError(f"result: {odd} is not in both the result and the clients' states; wanted equal names")
    errors, norms = {}, {}
    for layer, names in department.layers.items():
        whole = department.stack(department.factors(layer))
        up, down = (result[name].detach().to("cpu", torch.float64) for name in (names.b, names.a))
        got, wanted = (tuple(up.shape[:1]) + tuple(down.shape[1:])), (whole.up.shape[0], whole.down.shape[1])
        if got != wanted or up.shape[1] != down.shape[0]:
            shapes = f"B {tuple(up.shape)} and A {tuple(down.shape)}"
            raise ValueError(f"result, layer {layer}: got {shapes}, wanted (out, r) and (r, in) for (out, in) {wanted}")
        difference = Product(torch.cat([whole.up, -scale * up], dim=1), torch.cat([whole.down, down]))
        errors[layer], norms[layer] = product_norm(difference), product_norm(whole)
    return relative(errors, norms)


def _ratio(error: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if error == 0 else math.inf
    return error / norm
