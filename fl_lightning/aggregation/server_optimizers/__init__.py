"""What the server does with a department's mean residual ``Δ = Σ w_c (θ_c − θ)``: one file a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from fl_lightning.aggregation.server_optimizers import fedadagrad, fedadam, fedyogi, momentum, sgd
from fl_lightning.aggregation.server_optimizers.apply import Memory, ServerStep
from fl_lightning.errors import InputError, nearest
from fl_lightning.state import LoraState

SERVER_STEPS: dict[str, Callable[..., tuple[LoraState, Memory]]] = {
    "sgd": sgd.step,
    "fedavgm": momentum.step,
    "fedadam": fedadam.step,
    "fedyogi": fedyogi.step,
    "fedadagrad": fedadagrad.step,
}
"""The methods by name."""

__all__ = ["SERVER_STEPS", "Memory", "ServerStep", "make_server_step", "options_of"]


def options_of(name: str) -> dict[str, float]:
    """A method's options with their defaults.

    Raises:
        InputError: if there is no such method.

    Example:
        >>> options_of("fedadam")
        {'beta1': 0.9, 'beta2': 0.99, 'tau': 0.001}
    """
    if name not in SERVER_STEPS:
        choices = ", ".join(SERVER_STEPS)
        raise InputError(f"server step: got {name!r}, wanted one of {choices}{nearest(str(name), SERVER_STEPS)}")
    found = inspect.signature(SERVER_STEPS[name]).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name != "rate"}


def make_server_step(name: str, **options: float) -> ServerStep:
    """A method with its options set, all of them checked.

    Args:
        name: of `SERVER_STEPS`.
        options: of `options_of`; those not given have their defaults.

    Raises:
        InputError: if the name, an option or its value is none of the method's.

    Example:
        >>> import torch
        >>> step = make_server_step("fedavgm", beta=0.5)
        >>> state, memory = step({"lora_A": torch.tensor([0.0])}, {"lora_A": torch.tensor([4.0])}, {}, rate=0.25)
        >>> state["lora_A"].item()
        1.0
    """
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            choices = ", ".join(known) or "none"
            raise InputError(f"{name}: unknown option {option!r}, wanted {choices}{nearest(option, known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{name}: {option}: got {value!r}, wanted a number")
    step = functools.partial(SERVER_STEPS[name], **options)
    try:
        step({}, {}, {}, rate=0.0)  # the ranges are checked before any tensor is looked at
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    return step
