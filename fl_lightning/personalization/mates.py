"""Lent own adapters: those of a client's mates, each one component of its mixture."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.state import LoraState
from fl_lightning.storage.components import mate_component


def lent_adapters(client_id: str, own: Mapping[str, LoraState], lenders: str | bool) -> dict[str, LoraState]:
    """{component: adapter} that a client's mates lend it, without its own.

    Args:
        client_id: who takes.
        own: {client_id: own adapter} of all clients that have one.
        lenders: as ``personal.mates``: ``department`` for the other clients of its department, ``all`` for all others,
            ``off`` for nobody.

    Example:
        >>> own = {"hr/a": {}, "hr/b": {}, "it/c": {}}
        >>> list(lent_adapters("hr/a", own, "department")), list(lent_adapters("hr/a", own, "all"))
        (['mates hr/b'], ['mates hr/b', 'mates it/c'])
    """
    department = client_id.split("/", 1)[0]
    mates = [other for other in own if other != client_id and lenders != "off"]
    if lenders == "department":
        mates = [other for other in mates if other.split("/", 1)[0] == department]
    return {mate_component(mate): own[mate] for mate in mates}
