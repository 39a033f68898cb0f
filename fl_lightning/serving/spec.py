"""The HTTP side: OpenAI's chat completions and models, over LitServe's queues to the process that computes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem

from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError
from fl_lightning.serving.completion import DONE, Choice, Completion, Usage, event
from fl_lightning.serving.figures import Figures
from fl_lightning.serving.gate import CHAT
from fl_lightning.serving.messages import Ask, Cancel, Load, Piece
from fl_lightning.serving.offer import Offer
from fl_lightning.serving.requests import ApiError, ChatRequest, busy, read_request, unknown_model
from fl_lightning.text_stream import TextStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        prompt_tokens: of a prompt.
        new_tokens: of an answer, and how many it gets where the request does not say.
        context: tokens of both together, which the model has positions for; None where it does not say.
        seconds: until an answer has to be there.
        answers: under way or waiting at once; a request may ask for several.
    """

    prompt_tokens: int = 2048
    new_tokens: int = 256
    context: int | None = None
    seconds: float = 300.0
    answers: int = 256


class ChatSpec(LitSpec):
    """The endpoints.

    Args:
        tokenizer: of the model.
        offer: the models of the run.
        limits: of a request.
        figures: what is counted.
        watch_seconds: between two looks for a new round.
    """

    def __init__(self, tokenizer: Any, offer: Offer, limits: Limits, figures: Figures, watch_seconds: float) -> None:
        super().__init__()
        self.api_path = CHAT
        self._tokenizer, self._offer, self._limits = tokenizer, offer, limits
        self._figures, self._watch_seconds = figures, watch_seconds
        self.add_endpoint(CHAT, self.chat, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/v1/models/{name:path}", self.model, ["GET"])
        self.add_endpoint("/metrics", self.metrics, ["GET"])

    def __getstate__(self) -> dict[str, Any]:
        """What the process that computes needs of it: the path."""
        return {"api_path": self.api_path, "_endpoints": [], "_max_batch_size": self._max_batch_size}

    @property
    def stream(self) -> bool:
        """Always, as LitServe means it; the client may ask for the whole all the same."""
        return True

    async def models(self) -> Response:
        """The models that are served."""
        return JSONResponse({"object": "list", "data": [self._about(name) for name in list(self._offer.created)]})

    async def model(self, name: str) -> Response:
        """One of them."""
        if name not in self._offer.created:
            return _refusal(unknown_model(name, list(self._offer.created)))
        return JSONResponse(self._about(name))

    async def metrics(self) -> Response:
        """The figures, for Prometheus."""
        return Response(self._figures.text(), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        try:
            asked = read_request(await request.body())
            if asked.model not in self._offer.created:
                raise unknown_model(asked.model, list(self._offer.created))
            if len(self.response_buffer) + asked.n > self._limits.answers:
                raise busy(len(self.response_buffer))
            prompt = await asyncio.to_thread(self._prompt, asked)
            length = self._length(asked, len(prompt))
        except ApiError as error:
            return _refusal(error)
        self._figures.prompt_tokens.labels(asked.model).inc(len(prompt))
        seed = secrets.randbits(62)
        asks = [
            Ask(
                str(uuid.uuid4()), asked.model, prompt, length, asked.sampling(i, seed),
                stream=asked.stream or bool(asked.stops),
            )
            for i in range(asked.n)
        ]  # fmt: skip
        if asked.stream:
            return _Events(self._events(asked, asks), media_type="text/event-stream")
        whole = asyncio.ensure_future(self._whole(asked, asks))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
            if whole.done():
                return JSONResponse(whole.result())
        except ApiError as error:
            return _refusal(error)
        finally:
            for task in (whole, gone):
                task.cancel()
            await asyncio.gather(whole, gone, return_exceptions=True)
        return Response(status_code=499)  # nobody reads it

    async def watch(self) -> None:
        """Have adapters read that a new round has brought."""
        while True:
            await asyncio.sleep(self._watch_seconds)
            try:
                changed = await asyncio.to_thread(self._offer.look, lambda new: self._post(Load(dict(new))))
            except (InputError, OSError) as error:
                log.warning("the run cannot be read now: %s", error)
                continue
            if changed:
                self._figures.loads.inc(len(changed))
                more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
                log.info("new adapters: %s%s", ", ".join(list(changed)[:4]), more)

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._offer.created[name], "owned_by": "fl_lightning"}

    def _prompt(self, asked: ChatRequest) -> tuple[int, ...]:
        try:
            prompt = encode_prompt(asked.turns, self._tokenizer)
        except InputError as error:
            raise ApiError(400, str(error), param="messages", code="invalid_value") from error
        most = self._limits.prompt_tokens
        if self._limits.context is not None:
            most = min(most, self._limits.context - 1)
        if len(prompt) > most:
            raise ApiError(
                413, f"messages: {len(prompt)} tokens, wanted at most {most}", param="messages",
                code="context_length_exceeded",
            )  # fmt: skip
        return tuple(prompt)

    def _length(self, asked: ChatRequest, prompt: int) -> int:
        wanted = asked.max_completion_tokens or asked.max_tokens
        if wanted is not None and wanted > self._limits.new_tokens:
            key = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
            raise ApiError(
                400, f"{key}: got {wanted}, wanted at most {self._limits.new_tokens}", param=key, code="invalid_value"
            )
        length = wanted or self._limits.new_tokens
        return length if self._limits.context is None else min(length, self._limits.context - prompt)

    def _post(self, message: Ask | Cancel | Load) -> None:
        uid = getattr(message, "uid", "")
        self.request_queue.put((self.response_queue_id, uid, time.monotonic(), message))

    async def _pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """What comes of an answer; if nobody waits any more, the process that computes is told so."""
        parts: deque[Any] = deque()
        ready = asyncio.Event()
        self.response_buffer[ask.uid] = ResponseBufferItem(event=ready, response_queue=parts)
        ended = False
        try:
            self._post(ask)
            deadline = time.monotonic() + self._limits.seconds
            while not ended:
                try:
                    await asyncio.wait_for(ready.wait(), deadline - time.monotonic())
                except asyncio.TimeoutError as error:
                    raise ApiError(
                        504, f"no answer within {self._limits.seconds:.0f} s", code="timeout", retry_after=1
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
            self.response_buffer.pop(ask.uid, None)
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

    async def _whole(self, asked: ChatRequest, asks: Sequence[Ask]) -> dict[str, Any]:
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

    async def _events(self, asked: ChatRequest, asks: Sequence[Ask]) -> AsyncIterator[str]:
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


class _Events(StreamingResponse):
    """A stream whose generator ends with it, wherever it stood when the client went away."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


def _usage(asks: Sequence[Ask], choices: Sequence[Choice]) -> Usage:
    return Usage(len(asks[0].prompt), sum(choice.tokens for choice in choices))


def _refusal(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _gone(request: Request) -> None:
    """Come back when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
