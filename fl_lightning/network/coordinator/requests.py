"""Sends requests to sites, accepts replies only to pending requests, and counts the bytes."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fl_lightning import signals
from fl_lightning.config import NetworkConfig
from fl_lightning.errors import RunError
from fl_lightning.network.compatibility import SharedSettings, SiteInfo
from fl_lightning.network.coordinator.site_evaluation import NO_REPLY
from fl_lightning.network.coordinator.transport import MessageKind, MessageTransport, Reply
from fl_lightning.network.validation import RejectedReply, RequestId, parse_reply
from fl_lightning.state import LoraState
from fl_lightning.storage.messages import encode

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Longest wait for the first of several replies."""
RETRY_SECONDS = 5.0
"""A site whose request was lost is asked again after this time, or at once if it has connected anew."""


@dataclass(frozen=True)
class PendingRequest:
    """A request without a reply so far.

    Attributes:
        client_id: of the site.
        kind: of message.
        request_id: what the reply must repeat.
        connected_since: when the site had connected to which the request was sent; empty if unknown.
        max_bytes: of the reply.
    """

    client_id: str
    kind: MessageKind
    request_id: RequestId
    connected_since: str
    max_bytes: int


class RequestTracker:
    """Sends requests to sites and pairs replies with them.

    Args:
        transport: carries the messages.
        run: id of the run, the same after a resume.
        settings: what the sites' must match.
        network: the ``network`` block.

    Attributes:
        sites: {client_id: what the site says about itself} of the sites that have joined.
        round: of the requests.
        pending: {number: request} of all requests without a reply.
        traffic: bytes of messages so far: ``up`` from the sites, ``down`` to them; and ``refused``, rejected replies.
    """

    def __init__(
        self, transport: MessageTransport, *, run: str, settings: SharedSettings, network: NetworkConfig
    ) -> None:
        self.transport, self.network = transport, network
        self._run, self._settings = run, settings
        self.sites: dict[str, SiteInfo] = {}
        self.round = 0
        self.pending: dict[int, PendingRequest] = {}
        self.traffic = {"up": 0, "down": 0, "refused": 0}

    @property
    def run(self) -> str:
        """Id of the run."""
        return self._run

    @property
    def mixes_own(self) -> bool:
        """Whether sites use their own adapters in a mixture with their department's, by APFL."""
        return bool(self._settings.values["personal.apfl_alpha"] < 1)

    def register_site(self, client_id: str, header: Mapping[str, Any]) -> None:
        """Store what a site says about itself.

        Raises:
            RejectedReply: if it says something else than before, or cannot take part.
        """
        for word in ("refused", "failed"):
            if word in header:
                raise RejectedReply(f"the site says: {str(header[word])[:500]}")
        try:
            info = SiteInfo.from_dict(header.get("site"))
        except ValueError as error:
            raise RejectedReply(str(error)) from error
        before = self.sites.get(client_id, info)
        if info.client_id != client_id or before.fixed() != info.fixed():
            raise RejectedReply(f"expected the records, rank and key that the site joined with, {before}, got {info}")
        if info.train < 1:
            raise RejectedReply("the site has no records")
        self.sites[client_id] = info

    def send(
        self,
        client_id: str,
        kind: MessageKind,
        header: Mapping[str, Any],
        states: Sequence[Mapping[str, torch.Tensor]],
        max_bytes: int,
        ttl: float,
        nonce: str = "",
        connected_since: str = "",
    ) -> None:
        """Send a request.

        Args:
            client_id: of the site.
            kind: of message, for Flower.
            header: of the request, JSON values.
            states: tensors of the request.
            max_bytes: of the reply.
            ttl: seconds after which the request expires.
            nonce: of the round.
            connected_since: when the site connected; looked up if empty.

        Raises:
            RunError: if the request is larger than ``network.max_message_mb``.
        """
        request_id = RequestId(self._run, self.round, nonce, secrets.token_hex(16))
        body = encode({**header, "request_id": request_id.to_dict(), "settings": self._settings.to_dict()}, states)
        limit = int(self.network.max_message_mb * 2**20)
        if len(body) > limit:
            raise RunError(
                f"message to {client_id}: expected at most {limit:,} bytes (network.max_message_mb), got {len(body):,}"
            )
        self.traffic["down"] += len(body)
        connected_since = connected_since or self.transport.online().get(client_id, "")
        number = self.transport.send(client_id, kind, body, ttl)
        self.pending[number] = PendingRequest(client_id, kind, request_id, connected_since, min(max_bytes, limit))

    def replies(
        self, reasons: dict[str, str], on_lost: Callable[[str], object] = lambda client_id: None
    ) -> Iterator[tuple[str, dict[str, Any], list[LoraState]]]:
        """The replies to pending requests that have arrived; waits a little for the first.

        Args:
            reasons: {client_id: why there is no usable reply}, filled in here.
            on_lost: called with each client whose request will get no reply.

        Yields:
            (client_id, header, states) of each reply; the header of one that is no reply to its request is
            ``{"failed": reason}``.
        """

        def lost(request: PendingRequest, reason: str) -> None:
            reasons[request.client_id] = reason
            on_lost(request.client_id)

        for request, header, states in self.answers(lost):
            yield request.client_id, header, states

    def answers(
        self, on_lost: Callable[[PendingRequest, str], object]
    ) -> Iterator[tuple[PendingRequest, dict[str, Any], list[LoraState]]]:
        """As `replies`, with the requests; `on_lost` is called with each request that gets no reply, and the reason."""
        timeout, online = POLL_SECONDS, self.transport.online()
        for number, request in list(self.pending.items()):
            if request.connected_since and online.get(request.client_id, request.connected_since) != (
                request.connected_since
            ):
                del self.pending[number]
                on_lost(request, "it disconnected and came back")
        while (reply := self.transport.receive(timeout)) is not None:
            timeout = 0.0
            answered = self.pending.pop(reply.number, None)
            if answered is None:
                if reply.body is not None:
                    self.traffic["up"] += len(reply.body)
                    self.traffic["refused"] += 1
                    log.warning("a reply came to a request that is no longer pending; it is left unread")
                continue
            if reply.body is None:
                on_lost(answered, f"it was lost: {reply.reason}")
                continue
            header, states = self._parse(reply, answered)
            yield answered, header, states

    def _parse(self, reply: Reply, request: PendingRequest) -> tuple[dict[str, Any], list[LoraState]]:
        body = reply.body or b""
        self.traffic["up"] += len(body)
        try:
            return parse_reply(body, request.request_id, request.client_id, request.max_bytes)
        except RejectedReply as error:
            return {"failed": f"rejected here: {error}"}, []

    def reject(self, client_id: str, error: RejectedReply, reasons: dict[str, str]) -> None:
        """Count and log a rejected reply."""
        self.traffic["refused"] += 1
        reasons[client_id] = str(error)
        log.warning("round %d: a reply of %s is rejected: %s", self.round, client_id, error)

    def collect(
        self,
        unanswered: Collection[str],
        send: Callable[[str, float, str], object],
        is_enough: Callable[[], bool],
        reasons: dict[str, str],
    ) -> Iterator[tuple[str, dict[str, Any], list[LoraState]]]:
        """Ask sites, again if a request is lost, until enough have answered or ``network.deadline`` has passed.

        Args:
            unanswered: sites that owe an answer; the caller removes each with its answer.
            send: sends a site its request, with the seconds that are left and the time of its connection.
            is_enough: whether nobody waits for the others.
            reasons: {client_id: why there is no usable answer}, kept up to date here.
        """
        unsent = set(unanswered)
        sent_since: dict[str, str] = {}
        retry: dict[str, tuple[float, str]] = {}  # (not before, unless connected since another time than this)

        def on_lost(client_id: str) -> None:
            unsent.add(client_id)
            retry[client_id] = time.monotonic() + RETRY_SECONDS, sent_since[client_id]

        end = time.monotonic() + self.network.deadline
        while unanswered and time.monotonic() < end and not is_enough():
            signals.check()
            online, now = self.transport.online(), time.monotonic()
            for client_id in [c for c in unanswered if c in unsent and c in online]:
                not_before, lost_since = retry.get(client_id, (now, ""))
                if now >= not_before or online[client_id] != lost_since:
                    unsent.discard(client_id)
                    sent_since[client_id] = online[client_id]
                    send(client_id, end - now, online[client_id])
                    reasons[client_id] = NO_REPLY
            yield from self.replies(reasons, on_lost)

    def num_required(self, num_sites: int) -> int:
        """How many of a number of sites ``network.quorum`` asks for."""
        return math.ceil(self.network.quorum * num_sites - 1e-9)
