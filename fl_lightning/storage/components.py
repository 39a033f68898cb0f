"""What a client mixes: its levels' adapters, of which some levels have several, and their weights in a file.

The level own has ``own``, and with `personal.own_adapters` also ``own 2`` and so on; the level mates has one for each
mate, such as ``mates hr/client_1``. ``personal_eval.json`` has the weights by level, and beside them those of each own
adapter, if there are several, and of each mate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN, MATES = "own", "mates"
"""The levels with several adapters: trained by the client alone, and lent by its mates."""
OWN_ADAPTERS = "own_adapters"
"""Key of the weights of each own adapter."""


def own_component(number: int) -> str:
    """The component of a client's n-th own adapter, counted from 1.

    Example:
        >>> own_component(1), own_component(2)
        ('own', 'own 2')
    """
    return OWN if number == 1 else f"{OWN} {number}"


def mate_component(client_id: str) -> str:
    """The component that a mate lends."""
    return f"{MATES} {client_id}"


def lender(component: str) -> str | None:
    """The mate that lends a component; None if it is of another level.

    Example:
        >>> lender("mates hr/client_1"), lender("own 2"), lender("department hr")
        ('hr/client_1', None, None)
    """
    level, _, client_id = component.partition(" ")
    return client_id if level == MATES and client_id else None


def level_of(component: str) -> str:
    """The level of a component; that of a newcomer may be ``department hr``."""
    level = component.partition(" ")[0]
    return level if level in (OWN, MATES) else component


def split_weights(components: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The weights of components as `personal_eval.json` has them.

    Example:
        >>> split_weights({"own": 0.5, "mates hr/b": 0.25, "mates hr/c": 0.25})
        {'weights': {'own': 0.5, 'mates': 0.5}, 'mates': {'hr/b': 0.25, 'hr/c': 0.25}}
        >>> split_weights({"own": 0.5, "own 2": 0.25, "base": 0.25})
        {'weights': {'own': 0.75, 'base': 0.25}, 'own_adapters': {'own': 0.5, 'own 2': 0.25}}
    """
    levels: dict[str, float] = {}
    for component, weight in components.items():
        levels[level_of(component)] = levels.get(level_of(component), 0.0) + weight
    own = {component: weight for component, weight in components.items() if level_of(component) == OWN}
    mates = {mate: weight for component, weight in components.items() if (mate := lender(component))}
    parts = {"weights": levels, OWN_ADAPTERS: own if len(own) > 1 else {}, MATES: mates}
    return {key: weights for key, weights in parts.items() if weights or key == "weights"}


def join_weights(values: Mapping[str, Any]) -> dict[str, float]:
    """{component: weight}: the inverse of `split_weights`.

    Example:
        >>> join_weights({"weights": {"own": 0.5, "mates": 0.5}, "mates": {"hr/b": 0.5}})
        {'own': 0.5, 'mates hr/b': 0.5}
        >>> join_weights({"weights": {"own": 0.75, "base": 0.25}, "own_adapters": {"own": 0.5, "own 2": 0.25}})
        {'own': 0.5, 'own 2': 0.25, 'base': 0.25}
    """
    mates = {mate_component(mate): weight for mate, weight in values.get(MATES, {}).items()}
    weights: dict[str, float] = {}
    for level, weight in values.get("weights", {}).items():
        single = {OWN: values.get(OWN_ADAPTERS) or {OWN: weight}, MATES: mates}
        weights |= single.get(level, {level: weight})
    return weights
