"""Answers as the process that computes gives them: waited for whole, or passed on as they come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping, Sequence
from typing import Any

from litserve.utils import LitAPIStatus, ResponseBufferItem

from fl_lightning.serving.detokenizer import TextStream
from fl_lightning.serving.messages import Ask, Cancel, Piece
from fl_lightning.serving.metrics import Figures
from fl_lightning.serving.openai_schema import DONE, Choice, Completion, Usage, event
from fl_lightning.serving.requests import ApiError, ChatRequest

log = logging.getLogger(__name__)


class Answers:
    """Asks the process that computes, and makes of its tokens what the client is to see.

    Args:
        tokenizer: of the model.
        figures: what is counted.
        seconds: until an answer has to be there.
        buffer: where LitServe puts what comes, by the id of the answer.
        post: sends a message to the process that computes.
    """

    def __init__(
        self,
        tokenizer: Any,
        figures: Figures,
        seconds: float,
        buffer: MutableMapping[str, ResponseBufferItem],
        post: Callable[[Ask | Cancel], None],
    ) -> None:
        self._tokenizer, self._figures, self._seconds = tokenizer, figures, seconds
        self._buffer, self._post = buffer, post

    async def _pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """What comes of an answer; if nobody waits any more, the process that computes is told so."""
        parts: deque[Any] = deque()
        ready = asyncio.Event()
        self._buffer[ask.uid] = ResponseBufferItem(event=ready, response_queue=parts)
        ended = False
        try:
            self._post(ask)
            deadline = time.monotonic() + self._seconds
            while not ended:
                try:
                    await asyncio.wait_for(ready.wait(), deadline - time.monotonic())
                except asyncio.TimeoutError as error:
                    raise ApiError(
                        504, f"no answer within {self._seconds:.0f} s", code="timeout", retry_after=1
                    ) from error
                ready.clear()
                while parts:
                    piece, status = parts.popleft()
                    ended = ended or status != LitAPIStatus.OK
                    if status != LitAPIStatus.OK:
                        continue
                    if piece.error is not None:
                        raise ApiError(500, f"no answer: {piece.error}", code="internal_error")
                    self._figures.new_tokens.labels(ask.model).inc(len(piece.tokens))
                    yield piece
        finally:
            self._buffer.pop(ask.uid, None)
            if not ended:
                self._post(Cancel(ask.uid))

    async def _texts(self, asked: ChatRequest, ask: Ask, choice: Choice) -> AsyncGenerator[str, None]:
        """The text of an answer as it comes; `choice` is filled in on the way."""
        stream = TextStream(self._tokenizer, asked.stops)
        try:
            async with contextlib.aclosing(self._pieces(ask)) as pieces:
                async for piece in pieces:
                    choice.tokens += len(piece.tokens)
                    choice.fingerprint = piece.fingerprint
                    text = stream.push(piece.tokens, last=piece.finish is not None)
                    choice.text += text
                    choice.finish = "stop" if stream.stopped else piece.finish or choice.finish
                    if text:
                        yield text
                    if stream.stopped:
                        return
        except (asyncio.CancelledError, GeneratorExit):
            self._figures.abandoned.inc()
            raise

    async def whole(self, asked: ChatRequest, asks: Sequence[Ask]) -> dict[str, Any]:
        """The body of the answer, once all of it is there.

        Raises:
            ApiError: if it does not come.
        """
        choices = [Choice() for _ in asks]
        started = time.monotonic()

        async def finished(ask: Ask, choice: Choice) -> None:
            async with contextlib.aclosing(self._texts(asked, ask, choice)) as texts:
                async for _ in texts:
                    pass

        tasks = [asyncio.ensure_future(finished(*pair)) for pair in zip(asks, choices, strict=True)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._figures.seconds.labels(asked.model).observe(time.monotonic() - started)
        return Completion(asked.model).body(choices, _usage(asks, choices))

    async def events(self, asked: ChatRequest, asks: Sequence[Ask]) -> AsyncIterator[str]:
        """The events of a stream; the choices of a request come as they are produced."""
        completion, choices = Completion(asked.model), [Choice() for _ in asks]
        events: asyncio.Queue[str | ApiError | None] = asyncio.Queue()
        started, first = time.monotonic(), True

        async def told(index: int, ask: Ask, choice: Choice) -> None:
            try:
                await events.put(completion.chunk(index, {"role": "assistant", "content": ""}, None, ""))
                async with contextlib.aclosing(self._texts(asked, ask, choice)) as texts:
                    async for text in texts:
                        await events.put(completion.chunk(index, {"content": text}, None, choice.fingerprint))
                await events.put(completion.chunk(index, {}, choice.finish, choice.fingerprint))
                await events.put(None)
            except ApiError as error:
                await events.put(error)
            except Exception as error:  # the queue has gone, say: whatever it was, the stream has to end
                log.exception("no answer")
                await events.put(ApiError(500, f"no answer: {type(error).__name__}", code="internal_error"))

        tasks = [asyncio.ensure_future(told(i, *pair)) for i, pair in enumerate(zip(asks, choices, strict=True))]
        try:
            left = len(tasks)
            while left:
                item = await events.get()
                if isinstance(item, ApiError):
                    yield event(item.body())
                    return
                if item is None:
                    left -= 1
                    continue
                if first and any(choice.tokens for choice in choices):
                    first = False
                    self._figures.first.labels(asked.model).observe(time.monotonic() - started)
                yield item
            if asked.stream_options.include_usage:
                yield completion.usage_chunk(_usage(asks, choices), choices[0].fingerprint)
            self._figures.seconds.labels(asked.model).observe(time.monotonic() - started)
            yield DONE
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _usage(asks: Sequence[Ask], choices: Sequence[Choice]) -> Usage:
    return Usage(len(asks[0].prompt), sum(choice.tokens for choice in choices))
