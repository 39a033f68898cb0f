"""Names of the own adapters that clients lend each other, and their weights in ``personal_eval.json``.

What a client mixes are components: its levels, and one for each mate, called ``mates hr/client_1``. The file has the
weights by level, with those of all mates together as ``mates``, and beside them that of each mate.
"""

from __future__ import annotations

from collections.abc import Mapping

MATES = "mates"
"""The level of what mates lend."""


def component_of(client_id: str) -> str:
    """The component that a mate lends."""
    return f"{MATES} {client_id}"


def lender(component: str) -> str | None:
    """The mate that lends a component; None if it is a level.

    Example:
        >>> lender("mates hr/client_1"), lender("own"), lender("department hr")
        ('hr/client_1', None, None)
    """
    level, _, client_id = component.partition(" ")
    return client_id if level == MATES and client_id else None


def level_of(component: str) -> str:
    """The level of a component."""
    return MATES if lender(component) else component


def split_weights(components: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The weights of components as {level: weight} and {mate: weight}.

    Example:
        >>> split_weights({"own": 0.5, "mates hr/b": 0.25, "mates hr/c": 0.25})
        ({'own': 0.5, 'mates': 0.5}, {'hr/b': 0.25, 'hr/c': 0.25})
    """
    levels: dict[str, float] = {}
    for component, weight in components.items():
        levels[level_of(component)] = levels.get(level_of(component), 0.0) + weight
    return levels, {mate: weight for component, weight in components.items() if (mate := lender(component))}


def join_weights(levels: Mapping[str, float], mates: Mapping[str, float]) -> dict[str, float]:
    """The inverse of `split_weights`.

    Example:
        >>> join_weights({"own": 0.5, "mates": 0.5}, {"hr/b": 0.25, "hr/c": 0.25})
        {'own': 0.5, 'mates hr/b': 0.25, 'mates hr/c': 0.25}
    """
    single = {component_of(mate): weight for mate, weight in mates.items()}
    return {level: weight for level, weight in levels.items() if level != MATES} | single
