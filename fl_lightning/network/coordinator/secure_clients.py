"""Clients at sites that mask their updates: of a round the server gets each department's sum, and no single update.

A round has five requests to each site, see `fl_lightning.network.masked_messages`. The first one is its fit, and ends
as other fits do, by ``network.quorum`` or ``network.deadline``. In the following ones a site that does not answer has
dropped out. A department of which too few are left keeps its state; the others go on.

Every process of the server makes one attempt at a round. A server that is resumed asks with the next number, since
sites take part in each attempt once, and sign only the same sum again.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fl_lightning.aggregation.secure import round_terms
from fl_lightning.aggregation.sharing import SharePolicy
from fl_lightning.config import FederationConfig
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, CohortJournal, OnStep, header_of
from fl_lightning.network.coordinator.masked_round import MaskedRound
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.masked_messages import STEPS, AlreadySigned, MaskedStep, group_name
from fl_lightning.network.validation import HEADER_BYTES, RejectedReply
from fl_lightning.privacy.secure_aggregation.session import SecureMean
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

log = logging.getLogger(__name__)

AWAY_SECONDS = 20.0
"""After its fit, a site that is not connected for this time has dropped out of the round."""


class SecureClients(RemoteClients):
    """Clients at sites, with secure aggregation.

    Args:
        requests: to the sites, which have joined.
        policy: which factors and layers are shared.
        config: the ``federation`` block.
        attempt: number of this process of the server, from 1.

    Attributes:
        masked_sums: {department: its sum} of the last round that was fitted; a department without one is not in it.
    """

    def __init__(self, requests: RequestTracker, policy: SharePolicy, config: FederationConfig, attempt: int) -> None:
        super().__init__(requests, policy)
        self._federation, self._attempt = config, attempt
        self.masked_sums: dict[str, SecureMean] = {}
        self._is_spent = False
        """Whether a site has signed a sum of this round that was lost, so that the round cannot be repeated."""

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Have the sites train, and add up what they have learned, into `masked_sums`; there are no single updates.

        Raises:
            RunError: if no department has a sum. Not if that is because a sum of this round was lost when the server
                was killed: the same one needs all of its sites, so the run goes on to the next round instead.
        """
        self._requests.pending.clear()
        self._busy.clear()
        self.masked_sums, self._is_spent = {}, False
        tasks = [task for task in tasks if not task.is_own]  # a site trains its own adapter by itself, and keeps it
        if not tasks:
            return
        self._requests.round = round_num = tasks[0].round_num
        for department in dict.fromkeys(task.department for task in tasks):
            entry = None if journal is None else journal.kept(round_num, _entry(department))
            if entry is not None:
                self.masked_sums[department] = _from_journal(*entry)
        tasks = [task for task in tasks if task.department not in self.masked_sums]
        rounds = self._fit(tasks, on_step)
        for step in STEPS:
            self._take(step, rounds)
        for department, masked in rounds.items():
            try:
                mean = masked.result()
            except SecureAggregationError as error:
                self._give_up(error)
                continue
            if journal is not None:
                journal.keep(round_num, _entry(department), *_to_journal(mean))
            self.masked_sums[department] = mean
            log.info("round %d: %s: a masked sum of %d sites", round_num, department, len(mean.clients))
        if not self.masked_sums and not self._is_spent:
            raise RunError(
                f"round {round_num}: expected a masked sum of a department, got none; the state of the round before is "
                "kept. The log gives the reason for each department; when its sites are back, continue with "
                "fl-lightning server --resume last"
            )
        yield from ()

    def _fit(self, tasks: Sequence[ClientTask], on_step: OnStep | None) -> dict[str, MaskedRound]:
        """Have the sites train; each answers with the keys of the round."""
        nonce, asked = secrets.token_hex(16), Counter(task.department for task in tasks)
        rounds = {task.department: self._round_of(task, asked[task.department]) for task in tasks}
        unanswered = {task.client_id: task for task in tasks}
        reasons = dict.fromkeys(unanswered, "it is not connected")

        def is_enough() -> bool:
            waiting_for = {task.department for task in unanswered.values()}
            return all(self._suffices(rounds[d]) for d in waiting_for)

        def send(client_id: str, seconds: float, connected_since: str) -> None:
            task = unanswered[client_id]
            secure = self._secure(rounds[task.department])
            header = {"do": "fit", "task": header_of(task), "ledger": None, "secure": secure}
            states = [dict(task.start), task.frozen_product]
            ttl = max(1.0, seconds)
            self._requests.send(client_id, "train", header, states, HEADER_BYTES, ttl, nonce, connected_since)

        for client_id, header, _ in self._requests.collect(unanswered, send, is_enough, reasons):
            task = unanswered.pop(client_id)
            try:
                self._requests.register_site(client_id, header)
                rounds[task.department].receive_keys(client_id, header)
            except RejectedReply as error:
                self._requests.reject(client_id, error, reasons)
                continue
            if on_step is not None:
                on_step([client_id], 1.0, 0)
        for client_id in unanswered:
            log.warning("round %d goes on without %s: %s", self._requests.round, client_id, reasons[client_id])
        return rounds

    def _take(self, step: MaskedStep, rounds: dict[str, MaskedRound]) -> None:
        """Ask the sites of all departments for one step; a department of which too few are left is taken out."""
        contents: dict[str, Any] = {}
        for department, masked in list(rounds.items()):
            try:
                contents.update(masked.requests(step))
            except SecureAggregationError as error:
                self._give_up(error)
                del rounds[department]
        self._busy |= {request.client_id for request in self._requests.pending.values()}
        self._requests.pending.clear()  # a late answer to an earlier step is rejected
        unanswered, nonce = dict.fromkeys(contents), secrets.token_hex(16)
        reasons = dict.fromkeys(unanswered, "it is not connected")
        seen: dict[str, float] = {}

        def is_enough() -> bool:
            now, online = time.monotonic(), self._requests.transport.online()
            seen.update((c, now) for c in unanswered if c in online or c not in seen)
            here: dict[str, bool] = {}
            for client_id in unanswered:
                department = _department(client_id)
                here[department] = here.get(department, False) or now - seen[client_id] < AWAY_SECONDS
            return all(not is_here or self._suffices(rounds[d]) for d, is_here in here.items())

        def send(client_id: str, seconds: float, connected_since: str) -> None:
            masked = rounds[_department(client_id)]
            header = {"do": step, "secure": self._secure(masked), "masked": contents[client_id]}
            limit, ttl = masked.max_bytes(step), max(1.0, seconds)
            self._requests.send(client_id, "query", header, [], limit, ttl, nonce, connected_since)

        for client_id, header, states in self._requests.collect(unanswered, send, is_enough, reasons):
            del unanswered[client_id]
            try:
                rounds[_department(client_id)].receive(step, client_id, header, states)
            except RejectedReply as error:
                self._is_spent |= str(header.get("failed")).startswith(f"{AlreadySigned.__name__}:")
                self._requests.reject(client_id, error, reasons)
        for department, masked in rounds.items():
            if step == "mask":
                log.info(
                    "round %d: %s: masked updates of %d sites have arrived",
                    self._requests.round, department, len(masked.active),
                )  # fmt: skip
        for client_id in unanswered:
            log.warning(
                "round %d: %s has dropped out before the step %s: %s",
                self._requests.round, client_id, step, reasons[client_id],
            )  # fmt: skip

    def _round_of(self, task: ClientTask, asked: int) -> MaskedRound:
        start = self._policy.shared(task.start, task.round_num)
        group = group_name(task.department, task.round_num)
        try:
            terms = round_terms(
                self._federation, start,
                run=self._requests.run, department=group, round_num=self._attempt, invited=asked,
            )  # fmt: skip
        except ValueError as error:
            raise RunError(f"round {task.round_num}: {task.department}: federation.masking: {error}") from error
        roster = {c: bytes.fromhex(info.public_key) for c, info in self.sites.items()}
        return MaskedRound(terms, {c: key for c, key in roster.items() if _department(c) == task.department})

    def _secure(self, masked: MaskedRound) -> dict[str, int]:
        return {"attempt": self._attempt, "invited": masked.terms.invited}

    def _suffices(self, masked: MaskedRound) -> bool:
        """Whether nobody waits for the other sites of a department in a step."""
        enough = max(masked.terms.clients_needed, self._requests.num_required(masked.terms.invited))
        return len(masked.active) >= enough

    def _give_up(self, error: SecureAggregationError) -> None:
        log.warning("round %d: %s; its state is kept", self._requests.round, error)


def _department(client_id: str) -> str:
    return client_id.split("/", 1)[0]


def _entry(department: str) -> str:
    return f"masked_{department}"


def _to_journal(mean: SecureMean) -> tuple[dict[str, Any], list[Mapping[str, torch.Tensor]]]:
    values = {name: value for name, value in vars(mean).items() if name != "mean"}
    return values, [{"mean": torch.from_numpy(mean.mean)}]


def _from_journal(values: dict[str, Any], states: Sequence[Mapping[str, torch.Tensor]]) -> SecureMean:
    return SecureMean(**values, mean=states[0]["mean"].numpy())
