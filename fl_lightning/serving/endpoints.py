"""OpenAI's chat completions and models over HTTP; LitServe's queues lead to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec

from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError
from fl_lightning.serving.messages import Cancel, GenerateRequest, Load
from fl_lightning.serving.metrics import ServingMetrics
from fl_lightning.serving.middleware import CHAT
from fl_lightning.serving.model_registry import ModelRegistry
from fl_lightning.serving.requests import ApiError, ChatRequest, busy, read_request, unknown_model
from fl_lightning.serving.responses import Answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        prompt_tokens: tokens in a prompt.
        new_tokens: tokens in an answer; also the default of a request.
        context: tokens of prompt and answer together, the model's number of positions; None if unknown.
        seconds: time limit of an answer.
        answers: running or waiting at once; a request may ask for several.
    """

    prompt_tokens: int = 2048
    new_tokens: int = 256
    context: int | None = None
    seconds: float = 300.0
    answers: int = 256


class ChatSpec(LitSpec):
    """The endpoints.

    Args:
        tokenizer: of the base model.
        registry: the models of the run.
        limits: limits of a request.
        metrics: counts requests and tokens.
        watch_seconds: time between two checks for a new round.
    """

    def __init__(
        self, tokenizer: Any, registry: ModelRegistry, limits: Limits, metrics: ServingMetrics, watch_seconds: float
    ) -> None:
        super().__init__()
        self.api_path = CHAT
        self._tokenizer, self._registry, self._limits = tokenizer, registry, limits
        self._metrics, self._watch_seconds = metrics, watch_seconds
        self._slots = AnswerSlots(limits.answers)
        self.add_endpoint(CHAT, self.chat, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/v1/models/{name:path}", self.model, ["GET"])
        self.add_endpoint("/metrics", self.metrics, ["GET"])

    def __getstate__(self) -> dict[str, Any]:
        """State for the worker process, which only needs the path."""
        return {"api_path": self.api_path, "_endpoints": [], "_max_batch_size": self._max_batch_size}

    @property
    def stream(self) -> bool:
        """True for LitServe; a client may still ask for a whole answer."""
        return True

    async def models(self) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [self._describe(name) for name in list(self._registry.created)]})

    async def model(self, name: str) -> Response:
        """Describe one model."""
        if name not in self._registry.created:
            return _error_response(unknown_model(name, list(self._registry.created)))
        return JSONResponse(self._describe(name))

    async def metrics(self) -> Response:
        """Metrics for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        try:
            asked = read_request(await request.body())
            if asked.model not in self._registry.created:
                raise unknown_model(asked.model, list(self._registry.created))
            slots = self._slots.reserve(asked.n)  # before the next await: requests that arrive together are all counted
        except ApiError as error:
            return _error_response(error)
        with contextlib.ExitStack() as on_end:
            on_end.callback(slots)
            response = await self._answer(asked, request)
            if isinstance(response, _Events):
                response.on_end = on_end.pop_all()  # the stream runs after this function has returned
            return response

    async def _answer(self, asked: ChatRequest, request: Request) -> Response:
        """The response to a valid request."""
        try:
            prompt = await asyncio.to_thread(self._prompt, asked)
            length = self._length(asked, len(prompt))
        except ApiError as error:
            return _error_response(error)
        self._metrics.prompt_tokens.labels(asked.model).inc(len(prompt))
        seed = secrets.randbits(62)
        asks = [
            GenerateRequest(
                str(uuid.uuid4()), asked.model, prompt, length, asked.sampling(i, seed),
                stream=asked.stream or bool(asked.stops),
            )
            for i in range(asked.n)
        ]  # fmt: skip
        answers = Answers(self._tokenizer, self._metrics, self._limits.seconds, self.response_buffer, self._post)
        if asked.stream:
            return _Events(answers.events(asked, asks), media_type="text/event-stream")
        whole = asyncio.ensure_future(answers.whole(asked, asks))
        disconnected = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((whole, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if whole.done():
                return JSONResponse(whole.result())
        except ApiError as error:
            return _error_response(error)
        finally:
            for task in (whole, disconnected):
                task.cancel()
            await asyncio.gather(whole, disconnected, return_exceptions=True)
        return Response(status_code=499)  # the client has disconnected

    async def watch(self) -> None:
        """Load the adapters of new rounds."""
        while True:
            await asyncio.sleep(self._watch_seconds)
            try:
                changed = await asyncio.to_thread(
                    self._registry.refresh, lambda changed: self._post(Load(dict(changed)))
                )
            except (InputError, OSError) as error:
                log.warning("the run cannot be read at the moment: %s", error)
                continue
            if changed:
                self._metrics.loads.inc(len(changed))
                more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
                log.info("new adapters: %s%s", ", ".join(list(changed)[:4]), more)

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._registry.created[name], "owned_by": "fl_lightning"}

    def _prompt(self, asked: ChatRequest) -> tuple[int, ...]:
        try:
            prompt = encode_prompt(asked.turns, self._tokenizer)
        except InputError as error:
            raise ApiError(400, str(error), param="messages", code="invalid_value") from error
        limit = self._limits.prompt_tokens
        if self._limits.context is not None:
            limit = min(limit, self._limits.context - 1)
        if len(prompt) > limit:
            raise ApiError(
                413, f"messages: expected at most {limit} tokens, got {len(prompt)}", param="messages",
                code="context_length_exceeded",
            )  # fmt: skip
        return tuple(prompt)

    def _length(self, asked: ChatRequest, prompt: int) -> int:
        requested = asked.max_completion_tokens or asked.max_tokens
        if requested is not None and requested > self._limits.new_tokens:
            key = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
            raise ApiError(
                400,
                f"{key}: expected at most {self._limits.new_tokens}, got {requested}",
                param=key,
                code="invalid_value",
            )
        length = requested or self._limits.new_tokens
        return length if self._limits.context is None else min(length, self._limits.context - prompt)

    def _post(self, message: GenerateRequest | Cancel | Load) -> None:
        uid = getattr(message, "uid", "")
        self.request_queue.put((self.response_queue_id, uid, time.monotonic(), message))


class AnswerSlots:
    """Counts the answers that are running or waiting, up to a limit.

    Args:
        limit: at most n answers at once.

    Example:
        >>> slots = AnswerSlots(limit=3)
        >>> release = slots.reserve(2)
        >>> slots.taken
        2
        >>> release()
        >>> slots.taken
        0
    """

    def __init__(self, limit: int) -> None:
        self.taken = 0
        self._limit = limit

    def reserve(self, count: int) -> Callable[[], None]:
        """Reserve slots; the function that releases them comes back.

        Raises:
            ApiError: 429, if there are not enough.
        """
        if self.taken + count > self._limit:
            raise busy(self.taken)
        self.taken += count

        def release() -> None:
            self.taken -= count

        return release


class _Events(StreamingResponse):
    """A stream that closes its generator and `on_end` when it ends, also after a disconnect."""

    on_end: contextlib.ExitStack = contextlib.ExitStack()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        with self.on_end:
            async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _disconnected(request: Request) -> None:
    """Return when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
