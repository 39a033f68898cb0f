"""A round's updates: which may be averaged at all, and what is kept of those until the round is worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from fl_lightning.aggregation.weighting import Facts
from fl_lightning.federation.protocol import ClientTask, ClientUpdate
from fl_lightning.state import Factor, LoraState, distance, problem_with, select

MAX_EXAMPLES = 10**9
"""More records than that are no client's: it claims a weight that would drown the others."""


def problem_with_update(update: ClientUpdate, task: ClientTask, limit: float) -> str | None:
    """Why an update may not be averaged; None if it may.

    Args:
        update: what came back.
        task: what was asked.
        limit: how far it may have moved from its start.

    Example:
        >>> import torch
        >>> task = ClientTask("hr/a", 1, {"lora_A": torch.zeros(1)}, 7)
        >>> problem_with_update(ClientUpdate("hr/a", 1, {"lora_A": torch.ones(1)}, 3, 10), task, limit=0.5)
        'it moved by 1, wanted at most 0.5 (federation.max_update_norm)'
    """
    if problem := problem_with(update.state, task.start):
        return problem
    examples = update.num_examples
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES:
        large = type(examples) is int and examples.bit_length() > 64  # Python writes out no integer of any length
        got = f"an integer of {examples.bit_length()} bits" if large else repr(examples)[:40]
        return f"num_examples is {got}, wanted an integer from 1 to {MAX_EXAMPLES:,}"
    try:
        Facts(examples, update.num_tokens, tuple(update.losses))
    except (TypeError, ValueError) as error:
        return str(error)
    moved = distance(update.state, task.start)
    if moved > limit:
        return f"it moved by {moved:.3g}, wanted at most {limit:.3g} (federation.max_update_norm)"
    return None


class Received:
    """The valid updates of a round, by client id, in the order in which they came.

    Args:
        keep: takes in a state, such as `OffloadFolder.store`; memory where None.

    Attributes:
        shared: {client_id: what it sent}.
        personal: {client_id: what stays with it}, where something does.
        examples: {client_id: training records}.
        facts: {client_id: what weights go by}.

    Example:
        >>> received = Received()
        >>> state = {"q.lora_A": torch.ones(1), "q.lora_B": torch.ones(1)}
        >>> received.add(ClientUpdate("hr/a", 1, state, 3, 10), sends="a", keeps="b")
        >>> list(received.shared["hr/a"]), list(received.personal["hr/a"]), received.departments
        (['q.lora_A'], ['q.lora_B'], ['hr'])
    """

    def __init__(self, keep: Callable[[LoraState], Mapping[str, torch.Tensor]] = dict) -> None:
        self._keep = keep
        self.shared: dict[str, Mapping[str, torch.Tensor]] = {}
        self.personal: dict[str, Mapping[str, torch.Tensor]] = {}
        self.examples: dict[str, int] = {}
        self.facts: dict[str, Facts] = {}

    def add(self, update: ClientUpdate, *, sends: Factor, keeps: Factor) -> None:
        """Keep an update that was found valid."""
        self.shared[update.client_id] = self._keep(select(update.state, sends))
        if keeps != "none":
            self.personal[update.client_id] = self._keep(select(update.state, keeps))
        self.examples[update.client_id] = update.num_examples
        self.facts[update.client_id] = Facts(update.num_examples, update.num_tokens, tuple(update.losses))

    @property
    def departments(self) -> list[str]:
        """Departments with a valid update, in the order of their first."""
        return list(dict.fromkeys(client_id.split("/", 1)[0] for client_id in self.shared))

    def clients_of(self, department: str) -> list[str]:
        """Ids of a department's clients."""
        return [client_id for client_id in self.shared if client_id.split("/", 1)[0] == department]

    def arrange(self, order: Iterable[str]) -> None:
        """Put the updates into an order of client ids, so that sums do not depend on who answered first."""
        ranks = {client_id: rank for rank, client_id in enumerate(order)}
        heard = sorted(self.shared, key=ranks.__getitem__)
        self.shared = {client_id: self.shared[client_id] for client_id in heard}
        self.personal = {client_id: self.personal[client_id] for client_id in heard if client_id in self.personal}
        self.examples = {client_id: self.examples[client_id] for client_id in heard}
        self.facts = {client_id: self.facts[client_id] for client_id in heard}

    def drop(self, department: str) -> None:
        """Forget a department's updates."""
        for client_id in self.clients_of(department):
            for kept in (self.shared, self.personal, self.examples, self.facts):
                kept.pop(client_id, None)
