"""What all server methods share: a rule for one tensor, in fp64, with what is remembered from round to round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch

from fl_lightning.state import LoraState

Memory: TypeAlias = dict[str, LoraState]
"""What a method remembers of a department, by the papers' letters: ``{"m": state, "v": state}``; empty at first."""

Rule: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]
"""``rule(θ, Δ, *remembered)`` of one tensor gives the next (θ, *remembered): all in fp64, none changed in place."""

Second: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``second(v, Δ²)`` gives the next v."""


class ServerStep(Protocol):
    """What the server does with a department's mean residual: a method whose options are set."""

    def __call__(
        self,
        previous: Mapping[str, torch.Tensor],
        residual: Mapping[str, torch.Tensor],
        memory: Mapping[str, LoraState],
        *,
        rate: float,
    ) -> tuple[LoraState, Memory]:
        """The next state and what is to be remembered of it."""
        ...


def apply_per_tensor(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    memory: Mapping[str, LoraState],
    rule: Rule,
    *,
    rate: float,
    initial: Mapping[str, float],
) -> tuple[LoraState, Memory]:
    """Apply a rule to every tensor that the residual names.

    Both results are fp32 on the CPU and share no memory with what was given. The rule computes in fp64 and its results
    are cast once. The next round starts from the cast values, so that a run that went through a file ends in the same
    bits.

    Args:
        previous: θ.
        residual: Δ, names out of `previous`. The others' tensors, and what is remembered of them, stay.
        memory: what was remembered: nothing at all, or a state for every letter of `initial`.
        rule: see `Rule`.
        rate: checked here, used by the rule.
        initial: the letters, in the rule's order, with the value that each begins with in every element.

    Raises:
        ValueError: if the rate is negative or not finite, names or shapes do not match, or a result is not finite.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([2.0])}
        >>> def rule(theta, delta, count):
        ...     return theta + delta, count + 1
        >>> state, memory = apply_per_tensor(start, residual, {}, rule, rate=1.0, initial={"c": 5})
        >>> state["lora_A"].item(), memory["c"]["lora_A"].item()
        (3.0, 6.0)
    """
    if not (rate >= 0 and math.isfinite(rate)):
        raise ValueError(f"rate: got {rate}, wanted a finite number of at least 0")
    if memory and memory.keys() != initial.keys():
        raise ValueError(f"memory: got {sorted(memory)}, wanted {sorted(initial)} or none; it is another method's")
    if strangers := sorted(residual.keys() - previous.keys()):
        raise ValueError(f"{strangers[0]} is in the residual and not in the previous state; wanted a name out of it")
    state: LoraState = {}
    kept: Memory = {
        letter: {n: _copy(t) for n, t in memory.get(letter, {}).items() if n not in residual} for letter in initial
    }
    for name, theta in previous.items():
        if name not in residual:
            state[name] = _copy(theta)
            continue
        inputs = [theta, residual[name], *_remembered(memory, initial, name, theta.shape)]
        for what, tensor in zip(("the residual", *initial), inputs[1:], strict=True):
            if tensor.shape != theta.shape:
                got, wanted = tuple(tensor.shape), tuple(theta.shape)
                raise ValueError(f"{name}: {what} has shape {got}, the previous state has {wanted}")
        results = [t.to(torch.float32) for t in rule(*(t.detach().to("cpu", torch.float64) for t in inputs))]
        for what, tensor in zip(("the next state", *initial), results, strict=True):
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name}: {what} is not finite in fp32; wanted finite input and a smaller residual")
        state[name] = results[0]
        for letter, tensor in zip(initial, results[1:], strict=True):
            kept[letter][name] = tensor
    return state, kept


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _remembered(
    memory: Mapping[str, LoraState], initial: Mapping[str, float], name: str, shape: torch.Size
) -> list[torch.Tensor]:
    """What is remembered of a tensor, or how it begins, in fp64: τ² is not cast before it is used."""
    found = [letter for letter in initial if name in memory.get(letter, {})]
    if not found:
        return [torch.full(shape, value, dtype=torch.float64) for value in initial.values()]
    if len(found) < len(initial):
        raise ValueError(f"memory: {name} is in {found} only; wanted it in all of {sorted(initial)} or in none")
    return [memory[letter][name] for letter in initial]


def adaptive(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    memory: Mapping[str, LoraState],
    second: Second,
    *,
    rate: float,
    beta1: float,
    tau: float,
) -> tuple[LoraState, Memory]:
    """The frame of the adaptive methods: ``m ← β1 m + (1 − β1) Δ``, v by `second`, ``θ ← θ + η m / (√v + τ)``.

    m begins at 0 and v at τ². There is no correction of the bias that these beginnings have: the paper has none.

    Raises:
        ValueError: as `apply_per_tensor`, or if beta1 or tau is out of its range.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([3.0])}
        >>> state, _ = adaptive(start, residual, {}, lambda v, square: v * 4, rate=0.5, beta1=0.0, tau=1.0)
        >>> state["lora_A"].item()  # v = 4: 1 + 0.5 * 3 / (2 + 1)
        1.5
    """
    check_beta("beta1", beta1)
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau: got {tau}, wanted a positive finite number")

    def rule(theta: torch.Tensor, delta: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        m = beta1 * m + (1 - beta1) * delta
        v = second(v, delta.square())
        return theta + rate * m / (v.sqrt() + tau), m, v

    return apply_per_tensor(previous, residual, memory, rule, rate=rate, initial={"m": 0.0, "v": tau * tau})


def check_beta(name: str, value: float) -> None:
    """Check a share that is kept of the past.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}, wanted a number in [0, 1)")
