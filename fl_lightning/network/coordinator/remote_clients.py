"""The clients of a federation on other machines: tasks out, updates back, with a deadline and a quorum.

The trainer uses `RemoteClients` as it uses clients in its own process. A site that disconnects and comes back within a
round gets the same task again; a round goes on without a site that stays away.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch

from fl_lightning import signals
from fl_lightning.aggregation.sharing import SharePolicy
from fl_lightning.config import NetworkConfig
from fl_lightning.federation.protocol import (
    ClientTask,
    ClientUpdate,
    CohortJournal,
    EvaluationJob,
    Metrics,
    OnStep,
    Split,
    header_of,
)
from fl_lightning.network.compatibility import SiteInfo
from fl_lightning.network.coordinator.lending import hand_over_own_adapters
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.signatures import UpdateSignatures
from fl_lightning.network.coordinator.site_evaluation import NO_REPLY, SiteEvaluation
from fl_lightning.network.validation import (
    HEADER_BYTES,
    RejectedReply,
    max_update_bytes,
    parse_update,
)
from fl_lightning.state import LoraState

log = logging.getLogger(__name__)

FINISH_SECONDS = 60.0
"""How long the end of a run waits for the sites to write their adapters."""


class RemoteClients:
    """Clients at sites, reached through a message transport.

    Args:
        requests: to the sites, which have joined.
        policy: which factors and layers are shared.
        signatures: of sites under their updates; None without a ledger.

    Attributes:
        transport_errors: {client_id: relative rounding error of its last encoded update}.
    """

    def __init__(
        self, requests: RequestTracker, policy: SharePolicy, signatures: UpdateSignatures | None = None
    ) -> None:
        self._requests, self._policy, self._network = requests, policy, requests.network
        self._signatures = signatures
        self.transport_errors: dict[str, float] = {}
        self._busy: set[str] = set()
        """Sites that owe a reply, until the next round: they are busy with what they did not finish in time."""

    @property
    def sites(self) -> dict[str, SiteInfo]:
        """{client_id: what the site says about itself} of the sites that have joined."""
        return self._requests.sites

    @property
    def public_keys(self) -> dict[str, str]:
        """{client_id: public key} of the sites whose updates must be signed; empty without a ledger."""
        return {} if self._signatures is None else {c: info.public_key for c, info in sorted(self.sites.items())}

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes of messages so far: ``up`` from the sites, ``down`` to them; and ``refused``, rejected replies."""
        return self._requests.traffic

    @property
    def network(self) -> NetworkConfig:
        """The ``network`` block."""
        return self._network

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Send the tasks to their sites; updates come in the order of arrival, those in the journal first.

        Ends when each department has the replies that ``network.quorum`` asks for, or after ``network.deadline``.
        """
        nonce = secrets.token_hex(16)
        self._requests.pending.clear()  # a late reply to an earlier round is rejected
        self._busy.clear()
        tasks = [task for task in tasks if not task.is_own]  # a site trains its own adapter by itself, and keeps it
        num_tasks = Counter(task.department for task in tasks)
        num_received = dict.fromkeys(num_tasks, 0)
        unanswered: dict[str, ClientTask] = {}
        for task in tasks:
            self._requests.round = task.round_num
            replayed = journal.replay([task]) if journal is not None else None
            if replayed is None:
                unanswered[task.client_id] = task
                continue
            num_received[task.department] += 1
            yield from replayed
        reasons = dict.fromkeys(unanswered, "it is not connected")

        def is_enough() -> bool:
            waiting_for = {task.department for task in unanswered.values()}
            return all(num_received[d] >= self._requests.num_required(num_tasks[d]) for d in waiting_for)

        def send(client_id: str, seconds: float, connected_since: str) -> None:
            self._send_task(unanswered[client_id], nonce, seconds, connected_since)

        for client_id, header, states in self._requests.collect(unanswered, send, is_enough, reasons):
            task = unanswered.pop(client_id)
            try:
                update = self._receive_update(header, states, task)
            except RejectedReply as error:
                self._requests.reject(client_id, error, reasons)
                continue
            num_received[task.department] += 1
            if journal is not None:
                journal.record([update])
            if on_step is not None:
                on_step([client_id], 1.0, update.num_tokens)
            yield update
        for client_id in unanswered:
            log.warning("round %d goes on without %s: %s", self._requests.round, client_id, reasons[client_id])

    def _send_task(self, task: ClientTask, nonce: str, seconds: float, connected_since: str) -> None:
        # After its first fit a site has its private tensors on its own disk.
        start = self._policy.without_private(task.start) if self._has_private(task.client_id) else dict(task.start)
        max_bytes = max_update_bytes(self._policy.shared(task.start, task.round_num), self._network.transport)
        ledger = None if self._signatures is None else self._signatures.request(task.client_id)
        header = {"do": "fit", "task": header_of(task), "ledger": ledger, **self._kept(task.client_id)}
        states = [start, task.frozen_product]
        ttl = max(1.0, seconds)
        self._requests.send(task.client_id, "train", header, states, max_bytes, ttl, nonce, connected_since)

    def _has_private(self, client_id: str) -> bool:
        """Whether a site has its private tensors."""
        return self._policy.keeps_private and self.sites[client_id].kept > 0

    def _kept(self, client_id: str) -> dict[str, Any]:
        """Which of its fits a site goes on from, for the header of a request; empty if it is the last one."""
        return {}

    def _receive_update(self, header: dict[str, Any], states: list[LoraState], task: ClientTask) -> ClientUpdate:
        self._requests.register_site(task.client_id, header)
        shared_start = self._policy.shared(task.start, task.round_num)
        update = parse_update(header, states, task, shared_start, self._network.transport)
        num_records = self.sites[task.client_id].train
        if update.num_examples != num_records:
            raise RejectedReply(
                f"expected an update from the {num_records} records that the site joined with, got one from "
                f"{str(update.num_examples)[:20]} records"
            )
        if self._signatures is None:
            update = replace(update, signature="")  # nobody checks it
        else:
            shared = self._policy.shared(update.state, task.round_num)
            self._signatures.check(update, shared, self.sites[task.client_id].public_key)
        error = header.get("transport_error")
        if isinstance(error, float) and math.isfinite(error):
            self.transport_errors[task.client_id] = error
        return update

    def target_losses_of(self, states: Sequence[LoraState], client_ids: Sequence[str], split: Split) -> NoReturn:
        """Sites send sums over their records, never the losses of single tokens."""
        raise NotImplementedError("target_losses_of: expected clients of this process, got sites")

    def evaluate(self, jobs: Iterable[EvaluationJob], split: Split = "eval") -> list[Metrics]:
        """Evaluate adapters on the sites' held-out or selection records.

        Returns:
            Metrics in the order of the jobs; `NO_METRICS` for all jobs of a site that does not answer all of them.
        """
        self._busy |= {request.client_id for request in self._requests.pending.values()}
        self._requests.pending.clear()
        online, end = self._requests.transport.online(), time.monotonic() + self._network.deadline

        def send(client_id: str, states: list[LoraState]) -> None:
            self._send_evaluation(client_id, states, split, max(1.0, end - time.monotonic()), online[client_id])

        evaluation = SiteEvaluation(list(jobs), [c for c in online if c not in self._busy], send)
        while evaluation.unanswered and time.monotonic() < end:
            signals.check()
            lost: list[str] = []
            for client_id, header, _ in self._requests.replies(evaluation.reasons, lost.append):
                self._take_metrics(evaluation, client_id, header)
            evaluation.lose(lost)
        for client_id, reason in evaluation.reasons.items():
            log.warning("round %d: no metrics of %s: %s", self._requests.round, client_id, reason)
        return evaluation.results

    def _take_metrics(self, evaluation: SiteEvaluation, client_id: str, header: dict[str, Any]) -> None:
        try:
            evaluation.take(client_id, header)
        except RejectedReply as error:
            self._requests.reject(client_id, error, evaluation.reasons)

    def _send_evaluation(
        self, client_id: str, states: list[LoraState], split: Split, ttl: float, connected_since: str
    ) -> None:
        with_private = self._policy.keeps_private and self._requests.round > 0
        if with_private and self._has_private(client_id):
            # Equal objects stay equal objects, so that each is encoded once.
            selected: dict[int, LoraState] = {}
            states = [selected.setdefault(id(state), self._policy.without_private(state)) for state in states]
        header = {"do": "evaluate", "split": split, "with_private": with_private, **self._kept(client_id)}
        nonce = secrets.token_hex(16)
        self._requests.send(client_id, "evaluate", header, states, HEADER_BYTES, ttl, nonce, connected_since)

    def finish(self, levels: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]], rounds: int) -> None:
        """Tell the sites that the run has ended; a site replies when it has written its adapter.

        Before that the adapters that sites lend are handed to those that ask for them.

        Args:
            levels: {department: {level: whole adapter}}, the department's own first.
            rounds: of the run.
        """
        self._finish(levels, dict.fromkeys(levels, rounds), FINISH_SECONDS)

    def _finish(
        self,
        levels: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]],
        rounds: Mapping[str, int],
        seconds: float,
    ) -> None:
        self._requests.pending.clear()
        hand_over_own_adapters(self._requests, {name: adapters["department"] for name, adapters in levels.items()})
        online, reasons = self._requests.transport.online(), dict.fromkeys(self.sites, "it is not connected")
        for client_id in [c for c in self.sites if c in online]:
            department = client_id.split("/", 1)[0]
            header = {"do": "finish", "levels": list(levels[department]), "rounds": rounds[department]}
            self._requests.send(
                client_id,
                "query",
                {**header, **self._kept(client_id)},
                list(levels[department].values()),
                HEADER_BYTES,
                seconds,
                connected_since=online[client_id],
            )
            reasons[client_id] = NO_REPLY
        end = time.monotonic() + seconds
        while self._requests.pending and time.monotonic() < end:
            signals.check()
            for client_id, header, _ in self._requests.replies(reasons):
                if header.get("done") is True:
                    del reasons[client_id]
                else:
                    reasons[client_id] = str(header.get("failed"))[:300]
        for client_id, reason in reasons.items():
            log.warning("%s may not have written its adapter: %s", client_id, reason)
