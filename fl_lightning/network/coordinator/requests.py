"""Questions to sites and their answers, as far as these answer a question of this moment; what they cost is counted."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fl_lightning.config import NetworkConfig
from fl_lightning.errors import RunError
from fl_lightning.network.compatibility import SharedSettings, SiteInfo
from fl_lightning.network.coordinator.transport import Kind, MessageTransport, Reply
from fl_lightning.network.validation import RejectedReply, RequestId, parse_reply
from fl_lightning.state import LoraState
from fl_lightning.storage.messages import encode

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds that the first of several answers is waited for."""


@dataclass(frozen=True)
class PendingRequest:
    """A question that waits for its answer.

    Attributes:
        since: when the site had connected that was asked.
        largest: bytes that an answer may have.
    """

    client_id: str
    echo: RequestId
    since: str
    largest: int


class RequestTracker:
    """Asks sites, and takes in what they answer.

    Args:
        post: carries the messages.
        run: the run's id, equal after a resume.
        agreement: what the sites must have in common with this side.
        network: the ``network`` block.

    Attributes:
        sites: {client_id: what it said of itself} of those that joined.
        round: of what is asked.
        waiting: {number: question} of what has no answer yet.
        wire: bytes of messages so far: ``up`` from the sites, ``down`` to them; and ``refused``, answers not taken.
    """

    def __init__(self, post: MessageTransport, *, run: str, agreement: SharedSettings, network: NetworkConfig) -> None:
        self.post, self.network = post, network
        self._run, self._agreement = run, agreement
        self.sites: dict[str, SiteInfo] = {}
        self.round = 0
        self.waiting: dict[int, PendingRequest] = {}
        self.wire = {"up": 0, "down": 0, "refused": 0}

    def register_site(self, client_id: str, header: Mapping[str, Any]) -> None:
        """Take in what a site says of itself.

        Raises:
            RejectedReply: if it is not what it was, or cannot take part.
        """
        for word in ("refused", "failed"):
            if word in header:
                raise RejectedReply(f"the site says: {str(header[word])[:500]}")
        try:
            facts = SiteInfo.read(header.get("site"))
        except ValueError as error:
            raise RejectedReply(str(error)) from error
        before = self.sites.get(client_id, facts)
        if facts.client_id != client_id or replace(before, kept=0) != replace(facts, kept=0):
            raise RejectedReply(
                f"the site has other records or another rank than when it joined: {facts}, before {before}"
            )
        if facts.train < 1:
            raise RejectedReply("the site has no records")
        self.sites[client_id] = facts

    def ask(
        self,
        client_id: str,
        kind: Kind,
        header: Mapping[str, Any],
        states: Sequence[Mapping[str, torch.Tensor]],
        largest: int,
        ttl: float,
        nonce: str = "",
        since: str = "",
    ) -> None:
        """Send a question.

        Args:
            client_id: whom to.
            kind: as Flower sorts messages.
            header: what is asked, JSON values.
            states: tensors that belong to it.
            largest: bytes that an answer may have.
            ttl: seconds in which it is of use.
            nonce: of the round.
            since: when the site connected, if that is known.

        Raises:
            RunError: if it is larger than ``network.max_message_mb``.
        """
        echo = RequestId(self._run, self.round, nonce, secrets.token_hex(16))
        body = encode({**header, "echo": echo.to_dict(), "agreement": self._agreement.to_dict()}, states)
        limit = int(self.network.max_message_mb * 2**20)
        if len(body) > limit:
            raise RunError(
                f"a message to {client_id} has {len(body):,} bytes, wanted at most {limit:,} (network.max_message_mb)"
            )
        self.wire["down"] += len(body)
        since = since or self.post.online().get(client_id, "")
        number = self.post.send(client_id, kind, body, ttl)
        self.waiting[number] = PendingRequest(client_id, echo, since, min(largest, limit))

    def answers(
        self, reasons: dict[str, str], lost: Callable[[str], object] = lambda client_id: None
    ) -> Iterator[tuple[str, dict[str, Any], list[LoraState]]]:
        """Answers that have come and answer a question of this moment; waits a little for the first.

        Args:
            reasons: {client_id: why nothing of use came}, filled in here.
            lost: called with each client whose question has gone without an answer to come.
        """
        wait, online = POLL, self.post.online()
        for number, asked in list(self.waiting.items()):
            if asked.since and online.get(asked.client_id, asked.since) != asked.since:
                del self.waiting[number]
                reasons[asked.client_id] = "it went away and came back"
                lost(asked.client_id)
        while (answer := self.post.receive(wait)) is not None:
            wait = 0.0
            found = self.waiting.pop(answer.number, None)
            if found is None:
                if answer.body is not None:
                    self.wire["up"] += len(answer.body)
                    self.wire["refused"] += 1
                    log.warning("an answer came that nobody waits for any more, and is left unread")
                continue
            if answer.body is None:
                reasons[found.client_id] = f"it was lost: {answer.reason}"
                lost(found.client_id)
                continue
            header, states = self._open(answer, found)
            yield found.client_id, header, states

    def _open(self, answer: Reply, asked: PendingRequest) -> tuple[dict[str, Any], list[LoraState]]:
        body = answer.body or b""
        self.wire["up"] += len(body)
        try:
            return parse_reply(body, asked.echo, asked.client_id, asked.largest)
        except RejectedReply as error:
            return {"failed": f"refused here: {error}"}, []

    def refuse(self, client_id: str, error: RejectedReply, reasons: dict[str, str]) -> None:
        """Count and log an answer that is not taken."""
        self.wire["refused"] += 1
        reasons[client_id] = str(error)
        log.warning("round %d: an answer of %s is not taken: %s", self.round, client_id, error)

    def needed(self, asked: int) -> int:
        """How many of so many sites ``network.quorum`` waits for."""
        return math.ceil(self.network.quorum * asked - 1e-9)
