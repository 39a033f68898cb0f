"""Which prompt is decoded when: prompts wait for room in the decoder, tokens go back to their clients."""

from __future__ import annotations

import logging
import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fl_lightning.modeling.generation.adapter_mixture import ServedModel
from fl_lightning.modeling.generation.decoding import Answer
from fl_lightning.modeling.generation.token_sampling import Sampler
from fl_lightning.serving.engine import Answering
from fl_lightning.serving.messages import Cancel, GenerateRequest, TokenChunk

log = logging.getLogger(__name__)

MIN_CHUNK_SECONDS = 0.03
"""Minimum time between two chunks of a stream, since each costs a message between the processes."""


@dataclass(eq=False)
class PendingGeneration:
    """A prompt, its client, and how much of its answer was sent."""

    ask: GenerateRequest
    consumer: int
    answer: Answer
    sent: int = 0
    when: float = 0.0


class BatchScheduler:
    """Gives prompts to the decoder when there is room, and sends its tokens back.

    Args:
        answering: the model and its adapters.
        models: {model name: adapter or mixture}; read for every prompt, so it may change.
        max_batch: rows decoded at once; an answer has one, of a mixture one for each adapter. An answer with more rows
            is decoded alone.
        send: takes (consumer, uid, chunk).
    """

    def __init__(
        self,
        answering: Answering,
        models: Mapping[str, ServedModel],
        max_batch: int,
        send: Callable[[int, str, TokenChunk], None],
    ) -> None:
        self._answering, self._models, self._max_batch, self._send = answering, models, max_batch, send
        self._decoder = answering.decoder()
        self._running: dict[str, PendingGeneration] = {}
        self._waiting: OrderedDict[str, PendingGeneration] = OrderedDict()

    def work(
        self, inbox: queue.SimpleQueue[tuple[int, GenerateRequest | Cancel]], keep_running: Callable[[], bool]
    ) -> None:
        """Receive, decode and send while `keep_running` returns True."""
        with self._answering.bank.attached():
            while keep_running():
                idle = not self._running and not self._waiting
                try:
                    self._receive(*inbox.get(block=idle, timeout=1.0 if idle else None))
                    while True:
                        self._receive(*inbox.get_nowait())
                except queue.Empty:
                    pass
                try:
                    self._advance()
                except Exception as error:  # for example out of memory: running answers are lost, waiting ones are not
                    log.exception("no answer")
                    self._fail(f"{type(error).__name__} while decoding")

    def _receive(self, consumer: int, message: GenerateRequest | Cancel) -> None:
        if isinstance(message, Cancel):
            self._waiting.pop(message.uid, None)
            if pending := self._running.pop(message.uid, None):
                self._decoder.drop([pending.answer])
            return
        model = self._models.get(message.model)
        if model is None:
            self._send(consumer, message.uid, TokenChunk(error=f"model {message.model} could not be loaded"))
            return
        answer = Answer(message.prompt, model, message.max_new_tokens, Sampler(message.sampling))
        self._waiting[message.uid] = PendingGeneration(message, consumer, answer)

    def _advance(self) -> None:
        """One token for every running answer; then waiting prompts join if there is room, with their first token."""
        stepped = self._decoder.step()
        joining = []
        num_rows = sum(len(pending.answer.rows) for pending in self._running.values())
        while self._waiting:
            uid, pending = next(iter(self._waiting.items()))
            num_rows += len(pending.answer.rows)
            if num_rows > self._max_batch and self._running:
                break
            self._running[uid] = self._waiting.pop(uid)
            joining.append(pending.answer)
        if joining:
            self._decoder.add(joining)
        if stepped or joining:
            self._deliver()

    def _deliver(self) -> None:
        now = time.monotonic()
        for uid, pending in list(self._running.items()):
            answer = pending.answer
            due = pending.ask.stream and now - pending.when >= MIN_CHUNK_SECONDS and len(answer.tokens) > pending.sent
            if answer.finish is None and not due:
                continue
            chunk = TokenChunk(tuple(answer.tokens[pending.sent :]), answer.finish, answer.model.fingerprint)
            pending.sent, pending.when = len(answer.tokens), now
            if answer.finish is not None:
                del self._running[uid]
            self._send(pending.consumer, uid, chunk)

    def _fail(self, reason: str) -> None:
        for uid, pending in self._running.items():
            self._send(pending.consumer, uid, TokenChunk(error=reason))
        self._running.clear()
        self._decoder = self._answering.decoder()
