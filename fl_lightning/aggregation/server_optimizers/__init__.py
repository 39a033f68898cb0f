"""Server optimizers: how a department's state θ follows its clients' mean residual ``Δ = Σ w_c (θ_c − θ)``.

============  ====================================================  =======================================  ===========
name          step, with η the step size                            source                                   file
============  ====================================================  =======================================  ===========
`sgd`         θ ← θ + η Δ                                           Reddi et al. 2021, arXiv 2003.00295      `sgd`
`fedavgm`     m ← β1 m + Δ;  θ ← θ + η m                            Hsu et al. 2019, arXiv 1909.06335        `momentum`
`fedadam`     v ← β2 v + (1 − β2) Δ²;  θ ← θ + η m / (√v + τ)       Reddi et al. 2021                        `adaptive`
`fedyogi`     v ← v − (1 − β2) Δ² sign(v − Δ²);  θ as FedAdam       Reddi et al. 2021                        `adaptive`
`fedadagrad`  v ← v + Δ²;  θ as FedAdam                             Reddi et al. 2021                        `adaptive`
============  ====================================================  =======================================  ===========

`step_size` gives η of a round; `apply` applies a rule tensor by tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import get_args

from fl_lightning.aggregation import registry
from fl_lightning.aggregation.server_optimizers.apply import OptimizerState, ServerStep
from fl_lightning.config.federation import ServerStepName
from fl_lightning.errors import InputError, nearest
from fl_lightning.state import LoraState

SERVER_STEPS: dict[str, Callable[..., tuple[LoraState, OptimizerState]]] = registry.find_functions(
    __name__, __path__, get_args(ServerStepName)
)
"""The methods by name."""

__all__ = ["SERVER_STEPS", "OptimizerState", "ServerStep", "make_server_step", "options_of"]


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
        raise InputError(f"server step: expected one of {choices}, got {name!r}{nearest(str(name), SERVER_STEPS)}")
    return {option: value for option, value in registry.options_of(SERVER_STEPS[name]).items() if option != "rate"}


def make_server_step(name: str, **options: float) -> ServerStep:
    """A method with its options set, all of them checked.

    Args:
        name: one of `SERVER_STEPS`.
        options: from `options_of`; the others keep their defaults.

    Raises:
        InputError: if the method does not exist, does not have an option, or an option is out of range.

    Example:
        >>> import torch
        >>> step = make_server_step("fedavgm", beta1=0.5)
        >>> state, _ = step({"lora_A": torch.tensor([0.0])}, {"lora_A": torch.tensor([4.0])}, {}, rate=0.25)
        >>> state["lora_A"].item()
        1.0
    """
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            choices = ", ".join(known) or "no options"
            raise InputError(f"{name}: expected {choices}, got option {option!r}{nearest(option, known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{name}: {option}: expected a number, got {value!r}")
    step = functools.partial(SERVER_STEPS[name], **options)
    try:
        step({}, {}, {}, rate=0.0)  # checks the ranges, since there are no tensors
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    return step
