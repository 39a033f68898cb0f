"""Guards: what a department does against clients whose updates would spoil the mean.

A guard is a pure function of the clients' residuals ``Δ_c = θ_c − θ_start`` and aggregation weights. It does not depend
on the order of the clients: they are taken sorted by id. There are two kinds:

- ``clients``: judges whole clients and gives a `Selection`; the result is ``Σ w_c s_c Δ_c / Σ w_c`` by
  `weighted_center`.
- ``coordinates``: gives the center itself, made of all clients coordinate by coordinate. Weights are ignored.

==================  ===========  =======================  ==========================================================
name                kind         options                  holds against
==================  ===========  =======================  ==========================================================
none                clients                               nobody
norm_clip           clients      max_norm                 long updates: a client moves no more than its weight times M
outlier             clients      min_cosine, max_z        a minority that is much longer or points the other way
krum                clients      f                        f of 2 f + 3 clients; keeps one client's update
multi_krum          clients      f, m                     f of 2 f + 3 clients; keeps m clients' mean
geometric_median    clients      iterations, smoothing    those with less than half of the weight
median              coordinates                           a minority, in each coordinate
trimmed_mean        coordinates  fraction                 floor(fraction · n) clients, in each coordinate
==================  ===========  =======================  ==========================================================

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
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fl_lightning.aggregation.robust import (
    coordinate_median,
    geometric_median,
    krum,
    multi_krum,
    none,
    norm_clip,
    outlier_filter,
    trimmed_mean,
)
from fl_lightning.aggregation.robust.result import Selection, weighted_center
from fl_lightning.errors import InputError, nearest
from fl_lightning.linalg.client_matrix import Residuals, Weights
from fl_lightning.state import LoraState

__all__ = ["GUARDS", "Guard", "Kind", "Method", "Selection", "weighted_center", "make_guard"]

Kind: TypeAlias = Literal["clients", "coordinates"]
Guard: TypeAlias = Callable[[Residuals, Weights], Selection | LoraState]


@dataclass(frozen=True)
class Method:
    """A guard before its options are set.

    Attributes:
        kind: ``clients`` gives a `Selection`, ``coordinates`` the centre.
        function: takes residuals, weights, and the options by name.
    """

    kind: Kind
    function: Callable[..., Selection | LoraState]

    @property
    def options(self) -> list[str]:
        """Names of the options."""
        found = inspect.signature(self.function).parameters.values()
        return [option.name for option in found if option.kind is option.KEYWORD_ONLY]


GUARDS: dict[str, Method] = {
    "none": Method("clients", none.none),
    "norm_clip": Method("clients", norm_clip.norm_clip),
    "outlier": Method("clients", outlier_filter.outlier),
    "krum": Method("clients", krum.krum),
    "multi_krum": Method("clients", multi_krum.multi_krum),
    "geometric_median": Method("clients", geometric_median.geometric_median),
    "median": Method("coordinates", coordinate_median.median),
    "trimmed_mean": Method("coordinates", trimmed_mean.trimmed_mean),
}


def make_guard(name: str, **options: Any) -> Guard:
    """The guard of that name with these options; their values are looked at when it is called.

    Raises:
        InputError: no such guard, or it has no such option.

    Example:
        >>> make_guard("krum", g=1)
        Traceback (most recent call last):
        fl_lightning.errors.InputError: guard krum: got option 'g', wanted one of f
    """
    if name not in GUARDS:
        raise InputError(f"guard: got {name!r}, wanted one of {', '.join(GUARDS)}{nearest(name, GUARDS)}")
    known = GUARDS[name].options
    for option in options:
        if option not in known:
            wanted = f"wanted one of {', '.join(known)}{nearest(option, known)}" if known else "wanted none"
            raise InputError(f"guard {name}: got option {option!r}, {wanted}")
    return functools.partial(GUARDS[name].function, **options)
