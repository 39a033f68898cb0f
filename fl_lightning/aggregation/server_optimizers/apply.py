"""The common part of all server optimizers: a rule for one tensor in fp64, with a state kept from round to round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch

from fl_lightning.state import LoraState

OptimizerState: TypeAlias = dict[str, LoraState]
"""{slot: state} of a department's optimizer, slots named as in the papers: ``{"m": …, "v": …}``; empty at first."""

Rule: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]
"""``rule(θ, Δ, *slots)`` of one tensor returns the next (θ, *slots): all in fp64, none changed in place."""


class ServerStep(Protocol):
    """A server optimizer whose options are set."""

    def __call__(
        self,
        previous: Mapping[str, torch.Tensor],
        residual: Mapping[str, torch.Tensor],
        optimizer_state: Mapping[str, LoraState],
        *,
        rate: float,
    ) -> tuple[LoraState, OptimizerState]:
        """The next state of the department and of the optimizer."""
        ...


def apply_per_tensor(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    rule: Rule,
    *,
    rate: float,
    initial: Mapping[str, float],
) -> tuple[LoraState, OptimizerState]:
    """Apply a rule to every tensor of the residual.

    The rule computes in fp64 and its results are cast to fp32 once. The next round starts from the cast values, so a
    run that was resumed from a file ends with the same bits. Results are on the CPU and share no memory with the
    inputs.

    Args:
        previous: θ.
        residual: Δ; its names are a subset of those of `previous`. Other tensors, and their slots, stay unchanged.
        optimizer_state: empty, or a state for every slot of `initial`.
        rule: see `Rule`.
        rate: step size; checked here, used by the rule.
        initial: {slot: value with which each of its elements starts}, in the order of the rule's arguments.

    Raises:
        ValueError: if the rate is negative or not finite, names or shapes do not match, or a result is not finite.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([2.0])}
        >>> def rule(theta, delta, count):
        ...     return theta + delta, count + 1
        >>> state, slots = apply_per_tensor(start, residual, {}, rule, rate=1.0, initial={"c": 5})
        >>> state["lora_A"].item(), slots["c"]["lora_A"].item()
        (3.0, 6.0)
    """
    if not (rate >= 0 and math.isfinite(rate)):
        raise ValueError(f"rate: expected a finite number of at least 0, got {rate}")
    if optimizer_state and optimizer_state.keys() != initial.keys():
        raise ValueError(
            f"optimizer_state: expected {sorted(initial)} or nothing, got {sorted(optimizer_state)}, the state of "
            "another optimizer"
        )
    if unknown := sorted(residual.keys() - previous.keys()):
        raise ValueError(f"residual: expected names of the previous state, got {unknown[0]}")
    state: LoraState = {}
    slots: OptimizerState = {
        slot: {n: _copy(t) for n, t in optimizer_state.get(slot, {}).items() if n not in residual} for slot in initial
    }
    for name, theta in previous.items():
        if name not in residual:
            state[name] = _copy(theta)
            continue
        inputs = [theta, residual[name], *_slots(optimizer_state, initial, name, theta.shape)]
        for what, tensor in zip(("the residual", *initial), inputs[1:], strict=True):
            if tensor.shape != theta.shape:
                raise ValueError(f"{name}: expected shape {tuple(theta.shape)} of {what}, got {tuple(tensor.shape)}")
        results = [t.to(torch.float32) for t in rule(*(t.detach().to("cpu", torch.float64) for t in inputs))]
        for what, tensor in zip(("the next state", *initial), results, strict=True):
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name}: expected finite values of {what} in fp32, got NaN or infinity; check the inputs, or "
                    "lower the step size"
                )
        state[name] = results[0]
        for slot, tensor in zip(initial, results[1:], strict=True):
            slots[slot][name] = tensor
    return state, slots


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _slots(
    optimizer_state: Mapping[str, LoraState], initial: Mapping[str, float], name: str, shape: torch.Size
) -> list[torch.Tensor]:
    """A tensor's slots, or their initial values in fp64, since τ² must not be cast before its first use."""
    present = [slot for slot in initial if name in optimizer_state.get(slot, {})]
    if not present:
        return [torch.full(shape, value, dtype=torch.float64) for value in initial.values()]
    if len(present) < len(initial):
        raise ValueError(
            f"optimizer_state: expected {name} in all of {sorted(initial)} or in none, got it in {present}"
        )
    return [optimizer_state[slot][name] for slot in initial]


def check_beta(name: str, value: float) -> None:
    """Check a decay rate.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
