"""A round's updates by department, and the checks an update has to pass before it may be averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from fl_lightning.aggregation.sharing import SharePolicy
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.federation.protocol import ClientTask, ClientUpdate
from fl_lightning.state import LoraState, distance, problem_with

MAX_EXAMPLES = 10**9
"""No client has more records: a larger number would only drown the weights of the other clients."""


def problem_with_update(update: ClientUpdate, task: ClientTask, limit: float) -> str | None:
    """Why an update must not be averaged, or None if it may.

    Args:
        update: the client's reply.
        task: the request that it answers.
        limit: the longest distance that an update may have from its start.

    Example:
        >>> import torch
        >>> task = ClientTask("hr/a", 1, {"lora_A": torch.zeros(1)}, 7)
        >>> problem_with_update(ClientUpdate("hr/a", 1, {"lora_A": torch.ones(1)}, 3, 10), task, limit=0.5)
        'distance from the start: expected at most 0.5 (federation.max_update_norm), got 1'
    """
    if problem := problem_with(update.state, task.start):
        return problem
    examples = update.num_examples
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES:
        large = type(examples) is int and examples.bit_length() > 64  # Python refuses to print very long integers
        shown = f"an integer of {examples.bit_length()} bits" if large else repr(examples)[:40]
        return f"num_examples: expected an integer from 1 to {MAX_EXAMPLES:,}, got {shown}"
    try:
        ClientStats(examples, update.num_tokens, tuple(update.losses))
    except (TypeError, ValueError) as error:
        return str(error)
    moved = distance(update.state, task.start)
    if moved > limit:
        return f"distance from the start: expected at most {limit:.3g} (federation.max_update_norm), got {moved:.3g}"
    return None


def unchanged(update: ClientUpdate, state: LoraState) -> ClientUpdate:
    """An update that changes nothing, in place of one that must not be averaged.

    Args:
        update: the client's.
        state: of its department.

    Example:
        >>> import torch
        >>> update = ClientUpdate("hr/a", 1, {"lora_A": torch.tensor([float("nan")])}, 3, 10, losses=[0.5])
        >>> unchanged(update, {"lora_A": torch.ones(1)}).state, unchanged(update, {}).losses
        ({'lora_A': tensor([1.])}, [])
    """
    return replace(update, state=dict(state), num_examples=1, num_tokens=0, losses=[])


class ReceivedUpdate(NamedTuple):
    """A valid update, as it is stored until the end of the round.

    Attributes:
        shared: the tensors that departments average.
        private: the tensors that stay with the client; empty if there are none.
        stats: the inputs of its weight.
    """

    shared: Mapping[str, torch.Tensor]
    private: Mapping[str, torch.Tensor]
    stats: ClientStats


class RoundUpdates(Mapping[str, ReceivedUpdate]):
    """The valid updates of a round: {client_id: update}, stored by department.

    Access to one department does not depend on how many others there are.

    Args:
        keep: stores a state and returns it, such as `OffloadFolder.store`, which writes it to disk; by default memory.

    Example:
        >>> from fl_lightning.aggregation.sharing import share_policy
        >>> updates = RoundUpdates()
        >>> state = {"q.lora_A": torch.ones(1), "q.lora_B": torch.ones(1)}
        >>> updates.add(ClientUpdate("hr/a", 1, state, 3, 10), share_policy("a"))
        >>> list(updates["hr/a"].shared), list(updates["hr/a"].private), updates.departments
        (['q.lora_A'], ['q.lora_B'], ['hr'])
        >>> list(updates.of("hr")), list(updates.of("it"))
        (['hr/a'], [])
    """

    def __init__(self, keep: Callable[[LoraState], Mapping[str, torch.Tensor]] = dict) -> None:
        self._keep = keep
        self._departments: dict[str, dict[str, ReceivedUpdate]] = {}

    def __getitem__(self, client_id: str) -> ReceivedUpdate:
        return self._departments[_department(client_id)][client_id]

    def __iter__(self) -> Iterator[str]:
        for clients in self._departments.values():
            yield from clients

    def __len__(self) -> int:
        return sum(len(clients) for clients in self._departments.values())

    def add(self, update: ClientUpdate, policy: SharePolicy) -> None:
        """Store a valid update."""
        stats = ClientStats(update.num_examples, update.num_tokens, tuple(update.losses))
        shared = self._keep(policy.shared(update.state, update.round_num))
        private = self._keep(policy.private(update.state)) if policy.keeps_private else {}
        clients = self._departments.setdefault(_department(update.client_id), {})
        clients[update.client_id] = ReceivedUpdate(shared, private, stats)

    @property
    def departments(self) -> list[str]:
        """The departments with at least one valid update."""
        return list(self._departments)

    def of(self, department: str) -> Mapping[str, ReceivedUpdate]:
        """{client_id: update} of one department; empty if it has none."""
        return self._departments.get(department, {})

    def sort(self, order: Iterable[str]) -> None:
        """Sort departments and clients into the order of these client ids, so that sums do not depend on arrival.

        Args:
            order: client ids, among them all that are stored.
        """
        unsorted, self._departments = self._departments, {}
        for client_id in order:
            department = _department(client_id)
            if client_id in unsorted.get(department, {}):
                self._departments.setdefault(department, {})[client_id] = unsorted[department][client_id]

    def drop(self, department: str) -> None:
        """Remove a department's updates."""
        self._departments.pop(department, None)


def _department(client_id: str) -> str:
    return client_id.split("/", 1)[0]
