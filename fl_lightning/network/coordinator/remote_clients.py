"""The clients of a federation on other machines: tasks out, updates back, with a deadline and a quorum.

The trainer talks to `RemoteClients` as it talks to clients in its own process. A site that goes away and comes back
within a round is asked again, with the same task; one that stays away leaves the round to those that answered.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fl_lightning import signals
from fl_lightning.aggregation.sharing.policy import SharePolicy
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import (
    ClientTask,
    ClientUpdate,
    CohortJournal,
    EvaluationJob,
    Metrics,
    OnStep,
    header_of,
)
from fl_lightning.network.compatibility import SiteInfo
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.validation import HEADER_BYTES, RejectedReply, max_update_bytes, parse_update
from fl_lightning.state import LoraState, select

log = logging.getLogger(__name__)

JOBS = 16
"""Adapters in one message of an evaluation."""
ASK_AGAIN = 30.0
"""Seconds after which a site that does not answer at the start is asked once more."""
FINISH = 60.0
"""Seconds that the end of a run waits for the sites to write their adapters."""
RETRY = 5.0
"""Seconds after which a site whose question was lost is asked once more, unless it has connected anew."""
NOTHING = Metrics(0.0, 0.0, 0, 0)
"""The figures of a site that gave none."""


class RemoteClients:
    """Sites that are reached by a post.

    Args:
        requests: asks them.
        policy: which factors travel.

    Attributes:
        transport_errors: {client_id: relative rounding error of its last update on the way}.
    """

    def __init__(self, requests: RequestTracker, policy: SharePolicy) -> None:
        self._requests, self._policy, self._network = requests, policy, requests.network
        self.transport_errors: dict[str, float] = {}

    @property
    def sites(self) -> dict[str, SiteInfo]:
        """{client_id: what it said of itself} of those that joined."""
        return self._requests.sites

    @property
    def wire(self) -> dict[str, int]:
        """Bytes of messages so far: ``up`` from the sites, ``down`` to them; and ``refused``, answers not taken."""
        return self._requests.wire

    def join(self, expected: Iterable[str]) -> Mapping[str, SiteInfo]:
        """Wait for the sites, as long as ``network.join_timeout`` says, and hear what they have.

        Raises:
            RunError: if fewer came than ``network.quorum`` says.
        """
        wanted = list(expected)
        reasons = dict.fromkeys(wanted, "it has not connected")
        asked: dict[str, tuple[float, str]] = {}
        end = time.monotonic() + self._network.join_timeout
        log.info("waiting for %d sites", len(wanted))
        while (missing := [c for c in wanted if c not in self.sites]) and time.monotonic() < end:
            signals.check()
            online = self._requests.post.online()
            for client_id in [c for c in missing if c in online]:
                when, since = asked.get(client_id, (-math.inf, ""))
                if since != online[client_id] or time.monotonic() - when > ASK_AGAIN:
                    asked[client_id] = time.monotonic(), online[client_id]
                    self._requests.ask(client_id, "query", {"do": "hello"}, [], HEADER_BYTES, ASK_AGAIN * 2)
            for client_id, header, _ in self._requests.answers(reasons):
                try:
                    self._requests.register_site(client_id, header)
                    log.info("%s has joined: %d records", client_id, self.sites[client_id].train)
                except RejectedReply as error:
                    reasons[client_id] = str(error)
        self._requests.waiting.clear()
        for client_id in missing:
            log.warning("%s has not joined: %s", client_id, reasons[client_id])
        departments = {client_id.split("/", 1)[0] for client_id in wanted}
        for department in sorted(departments):
            own = [c for c in wanted if c.split("/", 1)[0] == department]
            here = [c for c in own if c in self.sites]
            if len(here) < self._requests.needed(len(own)):
                first = next(c for c in own if c not in self.sites)
                raise RunError(
                    f"{department}: {len(here)} of {len(own)} sites joined within {self._network.join_timeout:.0f} s "
                    f"(network.join_timeout), wanted {self._requests.needed(len(own))} (network.quorum); {first}: "
                    f"{reasons[first]}"
                )
        return {client_id: self.sites[client_id] for client_id in wanted if client_id in self.sites}

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Ask the sites of the tasks; updates come as they arrive, those in the journal first.

        It ends when each department has what ``network.quorum`` asks for, or at ``network.deadline``.
        """
        nonce = secrets.token_hex(16)
        self._requests.waiting.clear()  # a late answer to the round before is no answer to this one
        pending = {task.client_id: task for task in tasks}
        counts: dict[str, int] = {}
        for task in tasks:
            counts[task.department] = counts.get(task.department, 0) + 1
            self._requests.round = task.round_num
        heard = dict.fromkeys(counts, 0)
        for task in tasks:
            replayed = journal.replay([task]) if journal is not None else None
            if replayed is not None:
                heard[task.department] += 1
                del pending[task.client_id]
                yield from replayed
        open_tasks, reasons = dict(pending), dict.fromkeys(pending, "it is not connected")
        again: dict[str, tuple[float, str]] = {}
        since_when: dict[str, str] = {}

        def lost(client_id: str) -> None:
            pending[client_id] = open_tasks[client_id]
            again[client_id] = time.monotonic() + RETRY, since_when[client_id]

        end = time.monotonic() + self._network.deadline
        while open_tasks and time.monotonic() < end:
            left = dict.fromkeys(counts, 0)
            for task in open_tasks.values():
                left[task.department] += 1
            if all(heard[d] >= self._requests.needed(counts[d]) or not left[d] for d in counts):
                break
            signals.check()
            online, now = self._requests.post.online(), time.monotonic()
            for client_id in [c for c in pending if c in online]:
                when, since = again.get(client_id, (now, ""))
                if now >= when or online[client_id] != since:
                    since_when[client_id] = online[client_id]
                    self._ask_fit(pending.pop(client_id), nonce, end - now, online[client_id])
                    reasons[client_id] = "it did not answer in time"
            for client_id, header, states in self._requests.answers(reasons, lost):
                task = open_tasks.pop(client_id)
                try:
                    update = self._take(header, states, task)
                except RejectedReply as error:
                    self._requests.refuse(client_id, error, reasons)
                    continue
                heard[task.department] += 1
                if journal is not None:
                    journal.record([update])
                if on_step is not None:
                    on_step([client_id], 1.0, update.num_tokens)
                yield update
        for client_id in reasons:
            if client_id in open_tasks:
                log.warning("round %d goes on without %s: %s", self._requests.round, client_id, reasons[client_id])

    def _ask_fit(self, task: ClientTask, nonce: str, seconds: float, since: str) -> None:
        sends = self._policy.sends(task.round_num)
        # What stays with the site is there already, but for its first fit.
        kept = self._policy.keeps != "none" and self.sites[task.client_id].kept > 0
        start = select(task.start, sends) if kept else {name: task.start[name] for name in task.start}
        largest = max_update_bytes(task, sends, self._network.transport)
        header, states = {"do": "fit", "task": header_of(task)}, [start, task.frozen_product]
        self._requests.ask(task.client_id, "train", header, states, largest, max(1.0, seconds), nonce, since)

    def _take(self, header: dict[str, Any], states: list[LoraState], task: ClientTask) -> ClientUpdate:
        sends = self._policy.sends(task.round_num)
        self._requests.register_site(task.client_id, header)
        update = parse_update(header, states, task, sends, self._network.transport)
        if update.num_examples != self.sites[task.client_id].train:
            raise RejectedReply(
                f"it was trained on {str(update.num_examples)[:20]} records, wanted the "
                f"{self.sites[task.client_id].train} that the site said it has"
            )
        error = header.get("transport_error")
        if isinstance(error, float) and math.isfinite(error):
            self.transport_errors[task.client_id] = error
        return update

    def evaluate(self, jobs: Iterable[EvaluationJob]) -> list[Metrics]:
        """Adapters on the sites' held-out records, in the order of the jobs; `NOTHING` where a site gives none."""
        listed = list(jobs)
        results = [NOTHING] * len(listed)
        places: dict[str, list[int]] = {}
        for index, (_, client_id) in enumerate(listed):
            places.setdefault(client_id, []).append(index)
        # Who owes an answer is still busy with what it did not finish in time.
        owing = {asked.client_id for asked in self._requests.waiting.values()}
        self._requests.waiting.clear()
        online, end = self._requests.post.online(), time.monotonic() + self._network.deadline
        parts: dict[str, list[list[int]]] = {}  # what each site is still to answer, in order
        figures: dict[str, list[Metrics]] = {client_id: [] for client_id in places}
        for client_id in places:
            if client_id in online and client_id not in owing:
                own = places[client_id]
                parts[client_id] = [own[i : i + JOBS] for i in range(0, len(own), JOBS)]
        reasons = dict.fromkeys(places, "it is not connected, or not done with the round")
        own_factor = self._policy.keeps != "none" and self._requests.round > 0
        for client_id, chunks in parts.items():
            self._ask_figures(client_id, [listed[i][0] for i in chunks[0]], own_factor, end, online[client_id])
            reasons[client_id] = "it did not answer in time"
        while parts and time.monotonic() < end:
            signals.check()
            lost: list[str] = []
            for client_id, header, _ in self._requests.answers(reasons, lost.append):
                chunk = parts[client_id].pop(0)
                try:
                    found = _figures(header, len(chunk))
                except RejectedReply as error:
                    self._requests.refuse(client_id, error, reasons)
                    del parts[client_id]
                    continue
                figures[client_id] += found
                if parts[client_id]:
                    states = [listed[i][0] for i in parts[client_id][0]]
                    self._ask_figures(client_id, states, own_factor, end, online[client_id])
                else:
                    del parts[client_id], reasons[client_id]
                    for index, metrics in zip(places[client_id], figures[client_id], strict=True):
                        results[index] = metrics
            for client_id in lost:
                parts.pop(client_id, None)
        for client_id, reason in reasons.items():
            log.warning("round %d: no figures of %s: %s", self._requests.round, client_id, reason)
        return results

    def _ask_figures(self, client_id: str, states: list[LoraState], own: bool, end: float, since: str) -> None:
        if own and self.sites[client_id].kept > 0:
            sends = self._policy.sends(self._requests.round)
            made: dict[int, LoraState] = {}
            states = [made.setdefault(id(state), select(state, sends)) for state in states]
        header, left = {"do": "evaluate", "own": own}, max(1.0, end - time.monotonic())
        self._requests.ask(client_id, "evaluate", header, states, HEADER_BYTES, left, secrets.token_hex(16), since)

    def finish(self, adapters: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Tell the sites that the run is over; those that answer have written their adapters.

        Args:
            adapters: {department: whole adapter}.
        """
        self._requests.waiting.clear()
        online, reasons = self._requests.post.online(), dict.fromkeys(self.sites, "it is not connected")
        for client_id in [c for c in self.sites if c in online]:
            adapter = dict(adapters[client_id.split("/", 1)[0]])
            self._requests.ask(
                client_id, "query", {"do": "finish"}, [adapter], HEADER_BYTES, FINISH, since=online[client_id]
            )
            reasons[client_id] = "it did not answer in time"
        end = time.monotonic() + FINISH
        while self._requests.waiting and time.monotonic() < end:
            signals.check()
            for client_id, header, _ in self._requests.answers(reasons):
                if header.get("done") is True:
                    del reasons[client_id]
                else:
                    reasons[client_id] = str(header.get("failed"))[:300]
        for client_id, reason in reasons.items():
            log.warning("%s may not have written its adapter: %s", client_id, reason)


def _figures(header: Mapping[str, Any], count: int) -> list[Metrics]:
    """The figures in an answer.

    Raises:
        RejectedReply: if there are not so many, or they are no numbers.
    """
    if "failed" in header or "refused" in header:
        raise RejectedReply(str(header.get("failed") or header.get("refused"))[:500])
    listed = header.get("metrics")
    names = set(vars(NOTHING))
    if not isinstance(listed, list) or len(listed) != count:
        raise RejectedReply(f"it holds {str(listed)[:80]}, wanted the figures of {count} adapters")
    for values in listed:
        ok = isinstance(values, Mapping) and values.keys() == names
        if not ok or not all(type(v) in (int, float) and abs(v) < 1e15 for v in values.values()):
            raise RejectedReply(f"its figures are {str(values)[:200]}, wanted finite numbers")
        if type(values["num_tokens"]) is not int or values["num_tokens"] < 1:
            raise RejectedReply(f"its figures are over {values['num_tokens']} tokens, wanted at least 1")
    return [Metrics(**values) for values in listed]
