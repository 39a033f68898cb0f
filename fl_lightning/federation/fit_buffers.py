"""Who trains and whose updates wait in the departments' buffers: the bookkeeping of buffered rounds.

FedBuff, Nguyen et al. 2022 (arXiv 2106.06639). It knows no time: `fl_lightning.federation.virtual_time` tells it who
arrives in a simulation, and `fl_lightning.network.coordinator.site_rounds` who has answered between machines.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fl_lightning.seeding import derive_seed


@dataclass(frozen=True)
class PlannedFit:
    """A client's fit whose update a round takes.

    Attributes:
        client_id: ``department/client``.
        version: the round after which it started, from its department's state of then.
        staleness: steps that its department has made since.
    """

    client_id: str
    version: int
    staleness: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """What a round takes.

    Attributes:
        round_num: from 1.
        fits: {client_id: fit}.
        seconds: virtual time at the end of the round; None if the clients' time is real.
        dropped: clients whose updates came too late.
    """

    round_num: int
    fits: Mapping[str, PlannedFit]
    seconds: float | None = None
    dropped: Sequence[str] = field(default_factory=list)


class RoundSchedule(Protocol):
    """The rounds of a run, one after another."""

    def next_round(self) -> RoundPlan:
        """The plan of the next round."""
        ...

    def versions_in_use(self) -> set[tuple[str, int]]:
        """(department, round) of every state from which later rounds take fits that have started already."""
        ...


class FitBuffers:
    """The fits in flight and the buffers of all departments.

    Args:
        clients: {department: ids of its clients}, in any order.
        buffer: updates for a step; at most the clients of the department.
        concurrency: clients of a department in flight; None takes all.
        max_staleness: drop an update that is more steps old; None drops none.
        seed: the run seed.
        minimum: updates for a step if clients are away and the buffer cannot be filled.

    Attributes:
        round_num: steps of all departments so far.
        in_flight: {department: {client_id: (round, step of the department) after which its fit started}}.
        num_steps: {department: its steps so far}.

    Example:
        >>> buffers = FitBuffers({"hr": ["hr/a", "hr/b"]}, buffer=1, seed=7)
        >>> sorted(buffers.ask("hr")), buffers.arrive("hr/b"), buffers.is_full("hr")
        (['hr/a', 'hr/b'], True, True)
        >>> buffers.step("hr").fits["hr/b"], buffers.ask("hr"), buffers.in_flight["hr"]["hr/b"]
        (PlannedFit(client_id='hr/b', version=0, staleness=0), ['hr/b'], (1, 1))
    """

    def __init__(
        self,
        clients: Mapping[str, Sequence[str]],
        *,
        buffer: int,
        concurrency: int | None = None,
        max_staleness: int | None = None,
        seed: int,
        minimum: int = 1,
    ) -> None:
        self._clients = {department: sorted(clients[department]) for department in sorted(clients)}
        self._seed, self._max_staleness, self._minimum = seed, max_staleness, minimum
        self._buffer_size = {name: min(buffer, len(ids)) for name, ids in self._clients.items()}
        self._num_slots = {name: min(concurrency or len(ids), len(ids)) for name, ids in self._clients.items()}
        self.in_flight: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in self._clients}
        self._waiting: dict[str, dict[str, PlannedFit]] = {name: {} for name in self._clients}
        self.num_steps = dict.fromkeys(self._clients, 0)
        self._num_asked = dict.fromkeys(self._clients, 0)
        self._dropped: list[str] = []
        self.round_num = 0

    @property
    def departments(self) -> list[str]:
        """The names of all departments, sorted."""
        return list(self._clients)

    def ask(self, department: str, *, away: Collection[str] = (), closed: Collection[str] = ()) -> list[str]:
        """Draw clients that start now, from those that neither train nor wait, until as many train as may.

        Args:
            department: of the clients.
            away: clients that cannot be asked, and take no slot if they train.
            closed: clients that cannot be asked now.

        Returns:
            Ids in the order of the draws.
        """
        clients, flying, waiting = self._clients[department], self.in_flight[department], self._waiting[department]
        absent = {c for c in away if c.split("/", 1)[0] == department}
        shut = absent | {c for c in closed if c.split("/", 1)[0] == department}
        num_free = len(clients) - len(flying) - len(waiting) - len(shut - flying.keys() - waiting.keys())
        num_training = len(flying) - len(absent & flying.keys())
        asked: list[str] = []
        while num_training + len(asked) < self._num_slots[department] and len(asked) < num_free:
            self._num_asked[department] += 1
            draw = random.Random(derive_seed(self._seed, "ask", department, self._num_asked[department]))
            client_id = clients[draw.randrange(len(clients))]
            while client_id in flying or client_id in waiting or client_id in shut:
                client_id = clients[draw.randrange(len(clients))]
            flying[client_id] = self.round_num, self.num_steps[department]
            asked.append(client_id)
        return asked

    def started(self, client_id: str) -> tuple[int, int] | None:
        """(round, step of the department) after which a client in flight has started; None if it is not in flight."""
        return self.in_flight[client_id.split("/", 1)[0]].get(client_id)

    def arrive(self, client_id: str, started: tuple[int, int] | None = None) -> bool:
        """Put a client's update into its department's buffer; False if it is too old and dropped.

        Args:
            client_id: of the client.
            started: (round, step) after which its fit started; None takes that of its fit in flight.
        """
        department = client_id.split("/", 1)[0]
        in_flight = self.in_flight[department].pop(client_id, None)
        if (start := started or in_flight) is None:
            raise ValueError(f"{client_id}: expected a client in flight, got one that was not asked")
        version, step = start
        staleness = self.num_steps[department] - step
        if self._max_staleness is not None and staleness > self._max_staleness:
            self._dropped.append(client_id)
            return False
        self._waiting[department][client_id] = PlannedFit(client_id, version, staleness)
        return True

    def give_up(self, client_id: str) -> None:
        """Forget a client's fit, which will not arrive."""
        self.in_flight[client_id.split("/", 1)[0]].pop(client_id, None)

    def take_back(self, client_id: str) -> None:
        """Put an update that waits in a buffer, and is lost, in flight again."""
        department = client_id.split("/", 1)[0]
        fit = self._waiting[department].pop(client_id)
        self.in_flight[department][client_id] = fit.version, self.num_steps[department] - fit.staleness

    def waiting(self) -> list[str]:
        """Clients whose updates wait in a buffer."""
        return [client_id for fits in self._waiting.values() for client_id in fits]

    def is_full(self, department: str, away: Collection[str] = ()) -> bool:
        """Whether a department steps: its buffer is full, or has the updates of all clients that are not away."""
        waiting = self._waiting[department]
        absent = {c for c in away if c.split("/", 1)[0] == department} - waiting.keys()
        present = len(self._clients[department]) - len(absent)
        size = self._buffer_size[department]
        return bool(waiting) and len(waiting) >= min(size, max(present, self._minimum))

    def step(self, department: str, seconds: float | None = None) -> RoundPlan:
        """Empty the buffer of a department.

        Args:
            department: that steps.
            seconds: virtual time of the step.
        """
        self.round_num += 1
        self.num_steps[department] += 1
        fits, self._waiting[department] = self._waiting[department], {}
        dropped, self._dropped = self._dropped, []
        return RoundPlan(self.round_num, fits, seconds, dropped)

    def versions_in_use(self) -> set[tuple[str, int]]:
        """(department, round) of the states from which clients in flight or in a buffer have started."""
        flying = {(name, version) for name, fits in self.in_flight.items() for version, _ in fits.values()}
        return flying | {(name, fit.version) for name, fits in self._waiting.items() for fit in fits.values()}

    def to_dict(self) -> dict[str, Any]:
        """JSON values, from which `restore` goes on."""
        return {
            "round": self.round_num,
            "in_flight": {name: {c: list(start) for c, start in fits.items()} for name, fits in self.in_flight.items()},
            "waiting": {
                name: {c: [fit.version, fit.staleness] for c, fit in fits.items()}
                for name, fits in self._waiting.items()
            },
            "steps": dict(self.num_steps),
            "asked": dict(self._num_asked),
            "dropped": list(self._dropped),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from `to_dict`.

        Raises:
            KeyError: if a department is missing.
            ValueError: if a value has another form.
        """
        self.round_num = int(values["round"])
        for name in self._clients:
            self.in_flight[name] = {c: (int(v), int(step)) for c, (v, step) in values["in_flight"][name].items()}
            waiting = values["waiting"][name].items()
            self._waiting[name] = {c: PlannedFit(c, int(v), int(age)) for c, (v, age) in waiting}
            self.num_steps[name] = int(values["steps"][name])
            self._num_asked[name] = int(values["asked"][name])
        self._dropped = list(values["dropped"])
