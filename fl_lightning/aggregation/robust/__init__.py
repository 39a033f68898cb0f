"""Robust aggregation rules ("guards"): the department's mean in spite of clients that are broken or malicious.

A guard is a pure function of the clients' residuals ``Δ_c = θ_c − θ_d`` and aggregation weights. It does not depend on
the order of the clients, which are sorted by id. There are two kinds:

- Guards that select clients return a `Selection`; the result is ``Σ w_c s_c Δ_c / Σ w_c``, see `weighted_center`.
- Guards by coordinate return the center itself, a state. They ignore weights.

==================  ===========  =====================  ========================================  =================
name                kind         options                withstands                                file
==================  ===========  =====================  ========================================  =================
`norm_clip`         clients      max_norm               long updates: they move the mean by the   `norm_clip`
                                                        client's weight times M at most
`outlier`           clients      min_cosine, max_z      a minority, much longer or opposed        `outlier_filter`
`krum`              clients      f                      f of 2 f + 3 clients; keeps one update    `krum`
`multi_krum`        clients      f, m                   f of 2 f + 3 clients; averages m updates  `krum`
`geometric_median`  clients      iterations, smoothing  less than half of the total weight        `geometric_median`
`median`            coordinates                         a minority, in each coordinate            `coordinate_median`
`trimmed_mean`      coordinates  fraction               floor(fraction · n) clients, the same     `trimmed_mean`
==================  ===========  =====================  ========================================  =================

To add one, write its function in a file of this folder and its name in `fl_lightning.config.federation.GuardName`.
``guard: none`` means that no rule is applied; ``guard: dp`` is `fl_lightning.aggregation.private`.

Example:
    >>> import torch
    >>> values = {"hr/a": 1.0, "hr/b": 1.5, "hr/c": 1000.0}
    >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
    >>> selection = make_guard("outlier", max_z=3.0)(residuals, {"hr/a": 1.0, "hr/b": 3.0, "hr/c": 1.0})
    >>> weighted_center(residuals, selection)["lora_A"].item()
    1.375
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

from fl_lightning.aggregation.registry import find_functions, options_of
from fl_lightning.aggregation.robust.result import Selection, weighted_center
from fl_lightning.config.federation import GuardName
from fl_lightning.errors import InputError, nearest
from fl_lightning.linalg.client_matrix import Residuals, Weights
from fl_lightning.state import LoraState

__all__ = ["GUARDS", "Guard", "Selection", "make_guard", "weighted_center"]

Guard: TypeAlias = Callable[[Residuals, Weights], Selection | LoraState]

GUARDS: dict[str, Callable[..., Selection | LoraState]] = find_functions(
    __name__, __path__, [name for name in get_args(GuardName) if name not in ("none", "dp")]
)
"""The guards by name; each takes residuals, weights, and its options by keyword."""


def make_guard(name: str, **options: Any) -> Guard:
    """The guard of that name with these options; their values are checked when it is called.

    Raises:
        InputError: if there is no such guard, or it does not have such an option.

    Example:
        >>> make_guard("krum", g=1)
        Traceback (most recent call last):
        fl_lightning.errors.InputError: guard krum: expected f, got option 'g'
    """
    if name not in GUARDS:
        raise InputError(f"guard: expected one of {', '.join(GUARDS)}, got {name!r}{nearest(name, GUARDS)}")
    known = options_of(GUARDS[name])
    for option in options:
        if option not in known:
            expected = ", ".join(known) or "no options"
            raise InputError(f"guard {name}: expected {expected}, got option {option!r}{nearest(option, known)}")
    return functools.partial(GUARDS[name], **options)
