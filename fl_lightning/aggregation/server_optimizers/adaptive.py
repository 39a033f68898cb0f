"""FedAdam, FedYogi and FedAdagrad: adaptive server optimizers (Reddi et al. 2021, arXiv 2003.00295).

``m ← β1 m + (1 − β1) Δ`` and ``θ ← θ + η m / (√v + τ)``, starting with m = 0 and v = τ². They differ in v alone:

==========  ==================================  ========================================================================
FedAdam     v ← β2 v + (1 − β2) Δ²              a running mean of Δ²
FedYogi     v ← v − (1 − β2) Δ² sign(v − Δ²)    follows Δ² in steps of Δ²: falls slowly after a large residual, so that
                                                small residuals do not move θ far soon after (Zaheer et al. 2018)
FedAdagrad  v ← v + Δ²                          never falls: steps shrink like 1 / √t for residuals of constant size
==========  ==================================  ========================================================================

v depends on the square of the residual, not of m. As in the paper, there is no bias correction.

Common arguments:

- previous: θ, a department's state.
- residual: Δ = Σ w_c (θ_c − θ); its names are a subset of those of `previous`. Other tensors, their m and v stay
  unchanged.
- optimizer_state: m and v of the round before under ``"m"`` and ``"v"``; empty at the start.
- rate: η, at least 0. An element moves by about η a round (FedAdagrad: ``η / √t``), however small its residual, down
  to τ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from fl_lightning.aggregation.server_optimizers.apply import OptimizerState, apply_per_tensor, check_beta
from fl_lightning.state import LoraState

SecondMoment: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``second_moment(v, Δ²)`` returns the next v."""


def fedadam(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    *,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[LoraState, OptimizerState]:
    """Adam on the server: divide the mean of the residuals by the root of the mean of their squares, per element.

    Args:
        previous: see the module, as for `residual`, `optimizer_state` and `rate`.
        residual: Δ.
        optimizer_state: m and v.
        rate: η.
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1).
        tau: τ > 0, added to √v in the denominator (adaptivity).

    Returns:
        The next state and ``{"m": m, "v": v}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([2.0])}
        >>> state, slots = fedadam(start, residual, {}, rate=0.5, beta1=0.5, beta2=0.0, tau=2.0)
        >>> slots["m"]["lora_A"].item(), slots["v"]["lora_A"].item()  # 0.5 * 2, 2 * 2
        (1.0, 4.0)
        >>> state["lora_A"].item()  # 1 + 0.5 * 1 / (2 + 2)
        1.125
    """
    check_beta("beta2", beta2)

    def second_moment(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return beta2 * v + (1 - beta2) * square

    return adaptive_step(previous, residual, optimizer_state, second_moment, rate=rate, beta1=beta1, tau=tau)


def fedyogi(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    *,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[LoraState, OptimizerState]:
    """Yogi on the server: as `fedadam`, but v rises or falls by ``(1 − β2) Δ²``, whatever v is.

    Args:
        previous: see the module, as for `residual`, `optimizer_state` and `rate`.
        residual: Δ.
        optimizer_state: m and v.
        rate: η.
        beta1: decay of m, in [0, 1).
        beta2: β2 in [0, 1); the nearer to 1, the slower v follows.
        tau: τ > 0, added to √v in the denominator (adaptivity).

    Returns:
        The next state and ``{"m": m, "v": v}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([0.0])}, {"lora_A": torch.tensor([1.0])}
        >>> state, slots = fedyogi(start, residual, {}, rate=1.0, beta1=0.0, beta2=0.25, tau=2.0)
        >>> slots["v"]["lora_A"].item()  # 4 - 0.75 * 1; FedAdam: 0.25 * 4 + 0.75 * 1 = 1.75
        3.25
    """
    check_beta("beta2", beta2)

    def second_moment(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return v - (1 - beta2) * square * torch.sign(v - square)

    return adaptive_step(previous, residual, optimizer_state, second_moment, rate=rate, beta1=beta1, tau=tau)


def fedadagrad(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    *,
    rate: float,
    decay: float = 0.0,
    tau: float = 1e-3,
) -> tuple[LoraState, OptimizerState]:
    """Adagrad on the server: divide the mean of the residuals by the root of the sum of their squares, per element.

    Args:
        previous: see the module, as for `residual`, `optimizer_state` and `rate`.
        residual: Δ.
        optimizer_state: m and v.
        rate: η.
        decay: β1 of m, in [0, 1); 0 is Adagrad, which has no m. It is not called beta1 since it does not follow
            ``federation.server.beta1``.
        tau: τ > 0, added to √v in the denominator (adaptivity).

    Returns:
        The next state and ``{"m": m, "v": v}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> state, slots = {"lora_A": torch.tensor([0.0])}, {}
        >>> for value in (4.0, 12.0):
        ...     state, slots = fedadagrad(state, {"lora_A": torch.tensor([value])}, slots, rate=1.0, tau=3.0)
        >>> slots["v"]["lora_A"].item()  # 9 + 16 + 144 = 13 * 13
        169.0
        >>> state["lora_A"].item()  # 4 / (5 + 3) + 12 / (13 + 3)
        1.25
    """

    def second_moment(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return v + square

    return adaptive_step(previous, residual, optimizer_state, second_moment, rate=rate, beta1=decay, tau=tau)


def adaptive_step(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    second_moment: SecondMoment,
    *,
    rate: float,
    beta1: float,
    tau: float,
) -> tuple[LoraState, OptimizerState]:
    """The common step: ``m ← β1 m + (1 − β1) Δ``, v by `second_moment`, ``θ ← θ + η m / (√v + τ)``.

    Raises:
        ValueError: as `apply_per_tensor`, or if beta1 or tau is out of range.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([3.0])}
        >>> state, _ = adaptive_step(start, residual, {}, lambda v, square: v * 4, rate=0.5, beta1=0.0, tau=1.0)
        >>> state["lora_A"].item()  # v = 4: 1 + 0.5 * 3 / (2 + 1)
        1.5
    """
    check_beta("beta1", beta1)
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau: expected a positive finite number, got {tau}")

    def rule(theta: torch.Tensor, delta: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        m = beta1 * m + (1 - beta1) * delta
        v = second_moment(v, delta.square())
        return theta + rate * m / (v.sqrt() + tau), m, v

    return apply_per_tensor(previous, residual, optimizer_state, rule, rate=rate, initial={"m": 0.0, "v": tau * tau})
