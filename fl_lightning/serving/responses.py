"""Answers from the worker: awaited as a whole, or streamed."""

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
from fl_lightning.serving.messages import Cancel, GenerateRequest, TokenChunk
from fl_lightning.serving.metrics import ServingMetrics
from fl_lightning.serving.openai_schema import DONE, ChatCompletion, Choice, Completion, Usage, event
from fl_lightning.serving.requests import ApiError, ChatRequest, GenerationRequest

log = logging.getLogger(__name__)


class Answers:
    """Sends prompts to the worker and turns its tokens into responses.

    Args:
        tokenizer: of the base model.
        metrics: counts tokens and seconds.
        seconds: time limit of an answer.
        buffer: where LitServe puts the worker's messages, by the id of the answer.
        post: sends a message to the worker.
    """

    def __init__(
        self,
        tokenizer: Any,
        metrics: ServingMetrics,
        seconds: float,
        buffer: MutableMapping[str, ResponseBufferItem],
        post: Callable[[GenerateRequest | Cancel], None],
    ) -> None:
        self._tokenizer, self._metrics, self._seconds = tokenizer, metrics, seconds
        self._buffer, self._post = buffer, post

    async def _chunks(self, ask: GenerateRequest) -> AsyncGenerator[TokenChunk, None]:
        """The chunks of an answer; the worker is told when the client no longer waits."""
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
                    chunk, status = parts.popleft()
                    ended = ended or status != LitAPIStatus.OK
                    if status != LitAPIStatus.OK:
                        continue
                    if chunk.error is not None:
                        raise ApiError(500, f"no answer: {chunk.error}", code="internal_error")
                    self._metrics.new_tokens.labels(ask.model).inc(len(chunk.tokens))
                    yield chunk
        finally:
            self._buffer.pop(ask.uid, None)
            if not ended:
                self._post(Cancel(ask.uid))

    async def _texts(self, asked: GenerationRequest, ask: GenerateRequest, choice: Choice) -> AsyncGenerator[str, None]:
        """The text of an answer as it is produced; `choice` is filled in on the way."""
        stream = TextStream(self._tokenizer, asked.stops)
        try:
            async with contextlib.aclosing(self._chunks(ask)) as chunks:
                async for chunk in chunks:
                    choice.tokens += len(chunk.tokens)
                    choice.fingerprint = chunk.fingerprint
                    text = stream.push(chunk.tokens, last=chunk.finish is not None)
                    choice.text += text
                    choice.finish = "stop" if stream.stopped else chunk.finish or choice.finish
                    if text:
                        yield text
                    if stream.stopped:
                        return
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.abandoned.inc()
            raise

    async def whole(self, asked: GenerationRequest, asks: Sequence[GenerateRequest]) -> dict[str, Any]:
        """The body of the response, once all answers are complete.

        Raises:
            ApiError: no answer within the time limit, or the worker failed.
        """
        choices = [Choice() for _ in asks]
        started = time.monotonic()

        async def finished(ask: GenerateRequest, choice: Choice) -> None:
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
        self._metrics.seconds.labels(asked.model).observe(time.monotonic() - started)
        return _format(asked).body(choices, _usage(asked, asks, choices))

    async def events(self, asked: GenerationRequest, asks: Sequence[GenerateRequest]) -> AsyncIterator[str]:
        """The events of a stream; chunks of several choices are interleaved as they are produced."""
        completion, choices = _format(asked), [Choice() for _ in asks]
        events: asyncio.Queue[str | ApiError | None] = asyncio.Queue()
        started, first = time.monotonic(), True

        async def produce(index: int, ask: GenerateRequest, choice: Choice) -> None:
            try:
                if start := completion.first_chunk(index):
                    await events.put(start)
                async with contextlib.aclosing(self._texts(asked, ask, choice)) as texts:
                    async for text in texts:
                        await events.put(completion.chunk(index, text, None, choice.fingerprint))
                await events.put(completion.chunk(index, "", choice.finish, choice.fingerprint))
                await events.put(None)
            except ApiError as error:
                await events.put(error)
            except Exception as error:  # for example a closed queue: the stream has to end in any case
                log.exception("no answer")
                await events.put(ApiError(500, f"no answer: {type(error).__name__}", code="internal_error"))

        tasks = [asyncio.ensure_future(produce(i, *pair)) for i, pair in enumerate(zip(asks, choices, strict=True))]
        try:
            running = len(tasks)
            while running:
                item = await events.get()
                if isinstance(item, ApiError):
                    yield event(item.body())
                    return
                if item is None:
                    running -= 1
                    continue
                if first and any(choice.tokens for choice in choices):
                    first = False
                    self._metrics.first.labels(asked.model).observe(time.monotonic() - started)
                yield item
            if asked.stream_options.include_usage:
                yield completion.usage_chunk(_usage(asked, asks, choices), choices[0].fingerprint)
            self._metrics.seconds.labels(asked.model).observe(time.monotonic() - started)
            yield DONE
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _format(asked: GenerationRequest) -> Completion:
    return (ChatCompletion if isinstance(asked, ChatRequest) else Completion)(asked.model)


def _usage(asked: GenerationRequest, asks: Sequence[GenerateRequest], choices: Sequence[Choice]) -> Usage:
    prompts = asks[:: asked.n]  # the n answers to a prompt follow each other
    return Usage(sum(len(ask.prompt) for ask in prompts), sum(choice.tokens for choice in choices))
