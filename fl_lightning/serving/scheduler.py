"""Who is answered when: prompts wait until there is room in the decoder, tokens go to those who asked."""

from __future__ import annotations

import logging
import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fl_lightning.modeling.generation.adapter_bank import BankedAdapter
from fl_lightning.modeling.generation.decoding import Answer
from fl_lightning.modeling.generation.token_sampling import Sampler
from fl_lightning.serving.engine import Answering
from fl_lightning.serving.messages import Ask, Cancel, Piece

log = logging.getLogger(__name__)

PAUSE = 0.03
"""Seconds between two pieces of a streamed answer, at least: each costs a message between the processes."""


@dataclass(eq=False)
class _Ticket:
    """Who waits for an answer, and what was sent of it."""

    ask: Ask
    consumer: int
    answer: Answer
    sent: int = 0
    when: float = 0.0


class Desk:
    """Gives prompts to the decoder as there is room, and its tokens to those who wait.

    Args:
        answering: the model.
        models: {model name: adapter}; looked into anew for every prompt.
        max_batch: answers under way at once.
        send: takes (consumer, uid, piece).
    """

    def __init__(
        self,
        answering: Answering,
        models: Mapping[str, BankedAdapter],
        max_batch: int,
        send: Callable[[int, str, Piece], None],
    ) -> None:
        self._answering, self._models, self._max_batch, self._send = answering, models, max_batch, send
        self._decoder = answering.decoder()
        self._tickets: dict[str, _Ticket] = {}
        self._waiting: OrderedDict[str, _Ticket] = OrderedDict()

    def work(self, inbox: queue.SimpleQueue[tuple[int, Ask | Cancel]], go_on: Callable[[], bool]) -> None:
        """Take, decode, send, for as long as `go_on` says so."""
        with self._answering.bank.attached():
            while go_on():
                idle = not self._tickets and not self._waiting
                try:
                    self._take(*inbox.get(block=idle, timeout=1.0 if idle else None))
                    while True:
                        self._take(*inbox.get_nowait())
                except queue.Empty:
                    pass
                try:
                    self._advance()
                except Exception as error:  # out of memory, say: those who are under way lose their answer, nobody else
                    log.exception("no answer")
                    self._fail(f"{type(error).__name__} while decoding")

    def _take(self, consumer: int, message: Ask | Cancel) -> None:
        if isinstance(message, Cancel):
            self._waiting.pop(message.uid, None)
            if ticket := self._tickets.pop(message.uid, None):
                self._decoder.drop([ticket.answer])
            return
        adapter = self._models.get(message.model)
        if adapter is None:
            self._send(consumer, message.uid, Piece(error=f"model {message.model} could not be loaded"))
            return
        answer = Answer(message.prompt, adapter, message.max_new_tokens, Sampler(message.sampling))
        self._waiting[message.uid] = _Ticket(message, consumer, answer)

    def _advance(self) -> None:
        """One token for everybody who is under way; then those that there is room for join, with their first."""
        stepped = self._decoder.step()
        joining = []
        while self._waiting and len(self._tickets) < self._max_batch:
            uid, ticket = self._waiting.popitem(last=False)
            self._tickets[uid] = ticket
            joining.append(ticket.answer)
        if joining:
            self._decoder.add(joining)
        if stepped or joining:
            self._deliver()

    def _deliver(self) -> None:
        now = time.monotonic()
        for uid, ticket in list(self._tickets.items()):
            answer = ticket.answer
            due = ticket.ask.stream and now - ticket.when >= PAUSE and len(answer.tokens) > ticket.sent
            if answer.finish is None and not due:
                continue
            piece = Piece(tuple(answer.tokens[ticket.sent :]), answer.finish, answer.adapter.fingerprint)
            ticket.sent, ticket.when = len(answer.tokens), now
            if answer.finish is not None:
                del self._tickets[uid]
            self._send(ticket.consumer, uid, piece)

    def _fail(self, why: str) -> None:
        for uid, ticket in self._tickets.items():
            self._send(ticket.consumer, uid, Piece(error=why))
        self._tickets.clear()
        self._decoder = self._answering.decoder()
