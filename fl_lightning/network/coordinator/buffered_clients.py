"""The clients of buffered rounds between machines: fits that go on while departments step.

Whom to ask, and whose update counts for which step, is decided by `fl_lightning.network.coordinator.site_rounds`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fl_lightning import signals
from fl_lightning.aggregation.sharing import SharePolicy
from fl_lightning.federation.protocol import (
    ClientTask,
    ClientUpdate,
    CohortJournal,
    EvaluationJob,
    Metrics,
    OnStep,
    Split,
)
from fl_lightning.network.coordinator.remote_clients import FINISH_SECONDS, RemoteClients
from fl_lightning.network.coordinator.requests import PendingRequest, RequestTracker
from fl_lightning.network.coordinator.signatures import UpdateSignatures
from fl_lightning.network.coordinator.site_evaluation import SiteEvaluation
from fl_lightning.network.validation import RejectedReply
from fl_lightning.state import LoraState

log = logging.getLogger(__name__)

MESSAGE_SECONDS = 12 * 3600.0
"""Lifetime of a task, at least: the update of a site that was stopped is taken when it comes."""
PATIENCE = 10.0
"""An evaluation waits this many times as long as the slowest answer to one has taken so far ..."""
PATIENCE_SECONDS = 30.0
"""... and at least this long."""


@dataclass(frozen=True)
class SiteEvent:
    """A fit that has ended.

    Attributes:
        client_id: of the site.
        update: None if there will be none.
        reason: why there will be none.
    """

    client_id: str
    update: ClientUpdate | None
    reason: str = ""


class BufferedClients(RemoteClients):
    """Clients at sites that each train by themselves.

    Args:
        requests: to the sites, which have joined.
        policy: which factors and layers are shared.
        signatures: check those of the sites; None asks for none.

    Attributes:
        kept: {client_id: number of the fit from which its private tensors go on}, those whose update was taken last.
        taken: {client_id: update} that the next `fit` returns.
        steps: {department: its steps so far}.
        is_last: whether the round is the last one, in which evaluations wait for sites that train.
    """

    def __init__(
        self, requests: RequestTracker, policy: SharePolicy, signatures: UpdateSignatures | None = None
    ) -> None:
        super().__init__(requests, policy, signatures)
        self.kept: dict[str, int] = {}
        self.taken: dict[str, ClientUpdate] = {}
        self.steps: Mapping[str, int] = {}
        self.is_last = False
        self._tasks: dict[str, tuple[ClientTask, float]] = {}
        self._ended: deque[SiteEvent] = deque()
        self._slowest_fit, self._slowest_evaluation = 0.0, math.nan

    def online(self) -> Mapping[str, str]:
        """{client_id: time of connection} of the connected sites."""
        return self._requests.transport.online()

    def begin_fit(self, task: ClientTask) -> None:
        """Send a connected site a task; its update, or why there is none, comes by `next_event`."""
        self._tasks[task.client_id] = task, time.monotonic()
        seconds = max(self._network.deadline, MESSAGE_SECONDS)
        self._send_task(task, secrets.token_hex(16), seconds, self.online()[task.client_id])

    def overdue(self) -> set[str]:
        """Sites that have trained for longer than ``network.deadline``."""
        now = time.monotonic()
        return {client_id for client_id, (_, begin) in self._tasks.items() if now - begin > self._network.deadline}

    def next_event(self) -> SiteEvent | None:
        """The next fit that has ended; waits a little, and is None if there is none."""
        if not self._ended:
            for _ in self._receive([]):
                pass  # the answer to an evaluation that did not wait for it
        return self._ended.popleft() if self._ended else None

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """The updates in `taken`, which have arrived before the round began."""
        for task in tasks:
            self._requests.round = task.round_num
            update = replace(self.taken.pop(task.client_id), round_num=task.round_num)
            if on_step is not None:
                on_step([task.client_id], 1.0, update.num_tokens)
            yield update

    def evaluate(self, jobs: Iterable[EvaluationJob], split: Split = "eval") -> list[Metrics]:
        """Evaluate adapters at the sites that do not train just now, in the last round at all that are connected.

        Returns:
            Metrics in the order of the jobs; `NO_METRICS` for all jobs of a site that was not asked or did not answer.
        """
        online, begin = self.online(), time.monotonic()
        deadline = self._network.deadline
        if not math.isnan(self._slowest_evaluation):
            deadline = min(deadline, max(PATIENCE_SECONDS, PATIENCE * self._slowest_evaluation))
        if self.is_last:
            deadline += self._slowest_fit
        pending = {request.client_id: request.kind for request in self._requests.pending.values()}
        busy = {c for c, kind in pending.items() if not (self.is_last and kind == "train" and c not in self.overdue())}

        def send(client_id: str, states: list[LoraState]) -> None:
            self._send_evaluation(client_id, states, split, deadline, online[client_id])

        evaluation = SiteEvaluation(list(jobs), [c for c in online if c not in busy], send)
        while evaluation.unanswered and time.monotonic() - begin < deadline:
            signals.check()
            lost: list[str] = []
            for client_id, header in self._receive(lost):
                waited_for = client_id in evaluation.unanswered and client_id not in self._tasks
                self._take_metrics(evaluation, client_id, header)
                if waited_for:
                    seconds = time.monotonic() - begin
                    self._slowest_evaluation = max(seconds, 0.0 if math.isnan(self._slowest_evaluation)
                                                   else self._slowest_evaluation)  # fmt: skip
            evaluation.lose(lost)
        for client_id, reason in evaluation.reasons.items():
            level = logging.WARNING if client_id in evaluation.unanswered or self.is_last else logging.DEBUG
            log.log(level, "round %d: no metrics of %s: %s", self._requests.round, client_id, reason)
        return evaluation.results

    def finish(self, levels: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]], rounds: int) -> None:
        """Tell the sites that the run has ended, and in how many steps; those that train answer after their fit."""
        steps = {department: max(1, self.steps.get(department, rounds)) for department in levels}
        self._finish(levels, steps, min(FINISH_SECONDS + self._slowest_fit, FINISH_SECONDS + self._network.deadline))

    def _receive(self, lost_evaluations: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Take in what has come: fits that have ended are queued, and the answers to evaluations are yielded."""

        def on_lost(request: PendingRequest, reason: str) -> None:
            if request.kind == "train":
                self._end(request.client_id, None, reason)
            else:
                lost_evaluations.append(request.client_id)

        for request, header, states in self._requests.answers(on_lost):
            client_id = request.client_id
            if request.kind != "train":
                yield client_id, header
                continue
            task, begin = self._tasks[client_id]
            try:
                update = self._receive_update(header, states, task)
            except RejectedReply as error:
                reasons: dict[str, str] = {}
                self._requests.reject(client_id, error, reasons)
                self._end(client_id, None, reasons[client_id])
                continue
            self._slowest_fit = max(self._slowest_fit, time.monotonic() - begin)
            self._end(client_id, update)

    def _end(self, client_id: str, update: ClientUpdate | None, reason: str = "") -> None:
        self._tasks.pop(client_id, None)
        self._ended.append(SiteEvent(client_id, update, reason))

    def _kept(self, client_id: str) -> dict[str, Any]:
        return {"kept": self.kept.get(client_id, 0)}

    def _has_private(self, client_id: str) -> bool:
        return self._policy.keeps_private and self.kept.get(client_id, 0) > 0
