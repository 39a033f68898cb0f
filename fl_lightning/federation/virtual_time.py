"""Whose updates a round takes, and at which virtual second: a function of seed and profiles, not of training.

A resumed run therefore replays the order of events from the start, which takes milliseconds, and needs to keep only the
states from which clients in flight have started. Events of one moment are ordered by client id.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from fl_lightning.federation.fit_buffers import FitBuffers, PlannedFit, RoundPlan

EndOfFit = Callable[[str, float], float]
"""From a client and the virtual second at which it is asked to the second at which its update arrives."""


class BufferedRounds:
    """Each round is one step of one department: the first whose buffer is full.

    When an update arrives, the department asks another client, drawn from those that neither train nor wait in its
    buffer, to start from its newest state (FedBuff, Nguyen et al. 2022, arXiv 2106.06639).

    Args:
        clients: {department: ids of its clients}, in any order.
        end_of_fit: when an update arrives.
        buffer: updates for a step; at most the clients of the department.
        concurrency: clients of a department in flight; None takes all.
        max_staleness: drop an update that is more steps old; None drops none.
        seed: the run seed.

    Example:
        >>> seconds = {"hr/a": 1.0, "hr/b": 2.0}
        >>> rounds = BufferedRounds({"hr": ["hr/a", "hr/b"]}, lambda c, now: now + seconds[c], buffer=1, seed=7)
        >>> [(plan.seconds, list(plan.fits.values())) for plan in (rounds.next_round(), rounds.next_round())][1]
        (2.0, [PlannedFit(client_id='hr/a', version=1, staleness=0)])
    """

    def __init__(
        self,
        clients: Mapping[str, Sequence[str]],
        end_of_fit: EndOfFit,
        *,
        buffer: int,
        concurrency: int | None = None,
        max_staleness: int | None = None,
        seed: int,
    ) -> None:
        self._buffers = FitBuffers(
            clients, buffer=buffer, concurrency=concurrency, max_staleness=max_staleness, seed=seed
        )
        self._end_of_fit = end_of_fit
        self._arrivals: list[tuple[float, str]] = []
        self._now = 0.0
        for department in self._buffers.departments:
            self._ask(department)

    def next_round(self) -> RoundPlan:
        """The plan of the next round."""
        while True:
            self._now, client_id = heapq.heappop(self._arrivals)
            department = client_id.split("/", 1)[0]
            self._buffers.arrive(client_id)
            if self._buffers.is_full(department):
                break
            self._ask(department)
        plan = self._buffers.step(department, self._now)
        self._ask(department)  # from the state after this round
        return plan

    def versions_in_use(self) -> set[tuple[str, int]]:
        """(department, round) of the states from which clients in flight or in a buffer have started."""
        return self._buffers.versions_in_use()

    def _ask(self, department: str) -> None:
        for client_id in self._buffers.ask(department):
            heapq.heappush(self._arrivals, (self._end_of_fit(client_id, self._now), client_id))


class SynchronousRounds:
    """Each round takes updates of all departments and waits for the last one that it takes.

    With `over_select` more clients are asked than are taken, and with a deadline those that are later are dropped
    (Bonawitz et al. 2019, arXiv 1902.01046).

    Args:
        sample: from a round to {department: (clients that are asked, how many are taken)}.
        end_of_fit: when an update arrives.
        deadline: seconds that a round waits at most; None waits for all.
    """

    def __init__(
        self,
        sample: Callable[[int], Mapping[str, tuple[Sequence[str], int]]],
        end_of_fit: EndOfFit,
        *,
        deadline: float | None = None,
    ) -> None:
        self._sample, self._end_of_fit, self._deadline = sample, end_of_fit, deadline
        self._round_num, self._now = 0, 0.0

    def next_round(self) -> RoundPlan:
        """The plan of the next round."""
        self._round_num += 1
        end, fits, dropped = self._now, {}, []
        latest = None if self._deadline is None else self._now + self._deadline
        for clients, count in self._sample(self._round_num).values():
            arrivals = sorted((self._end_of_fit(client_id, self._now), client_id) for client_id in clients)
            in_time = [(at, who) for at, who in arrivals[:count] if latest is None or at <= latest]
            dropped += [client_id for _, client_id in arrivals[len(in_time) :]]
            fits.update({who: PlannedFit(who, self._round_num - 1) for _, who in in_time})
            waited = [at for at, _ in in_time[-1:]] if len(in_time) == count or latest is None else [latest]
            end = max(end, *waited)
        self._now = end
        return RoundPlan(self._round_num, fits, end, sorted(dropped))

    def versions_in_use(self) -> set[tuple[str, int]]:
        """Nobody is in flight between rounds."""
        return set()
