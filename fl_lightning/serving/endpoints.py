"""OpenAI's chat completions, completions and models over HTTP; LitServe's queues lead to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec

from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError
from fl_lightning.serving.messages import Cancel, GenerateRequest, Load
from fl_lightning.serving.metrics import ServingMetrics
from fl_lightning.serving.middleware import CHAT, COMPLETIONS
from fl_lightning.serving.model_registry import ModelRegistry
from fl_lightning.serving.requests import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    busy,
    read_request,
    unknown_model,
)
from fl_lightning.serving.responses import Answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        prompt_tokens: tokens in a prompt.
        new_tokens: tokens in an answer; also the default of a request.
        context: tokens of prompt and answer together, the model's number of positions; None if unknown.
        vocabulary: number of token ids that the model knows; the tokenizer may have more. None if unknown.
        seconds: time limit of an answer.
        answers: running or waiting at once; a request may ask for several.
    """

    prompt_tokens: int = 2048
    new_tokens: int = 256
    context: int | None = None
    vocabulary: int | None = None
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
        self.add_endpoint(COMPLETIONS, self.completions, ["POST"])
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
        return await self._respond(ChatRequest, request)

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        return await self._respond(CompletionRequest, request)

    async def _respond(self, kind: type[GenerationRequest], request: Request) -> Response:
        try:
            asked = read_request(kind, await request.body())
            if asked.model not in self._registry.created:
                raise unknown_model(asked.model, list(self._registry.created))
            slots = self._slots.reserve(_num_answers(asked))  # before the next await: all that arrive together count
        except ApiError as error:
            return _error_response(error)
        with contextlib.ExitStack() as on_end:
            on_end.callback(slots)
            response = await self._answer(asked, request)
            if isinstance(response, _Events):
                response.on_end = on_end.pop_all()  # the stream runs after this function has returned
            return response

    async def _answer(self, asked: GenerationRequest, request: Request) -> Response:
        """The response to a valid request."""
        try:
            prompts = await asyncio.to_thread(self._prompts, asked)
        except ApiError as error:
            return _error_response(error)
        self._metrics.prompt_tokens.labels(asked.model).inc(sum(map(len, prompts)))
        seed = secrets.randbits(62)
        asks = [
            GenerateRequest(
                str(uuid.uuid4()), asked.model, prompt, self._length(asked, len(prompt)),
                asked.sampling(len(prompts) * i + number, seed), stream=asked.stream or bool(asked.stops),
            )
            for number, prompt in enumerate(prompts)
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

    def _prompts(self, asked: GenerationRequest) -> list[tuple[int, ...]]:
        """Token ids of the prompts, at least one each."""
        vocabulary = min(len(self._tokenizer), self._limits.vocabulary or len(self._tokenizer))
        if unknown := [token for token in asked.logit_bias if not 0 <= token < vocabulary]:
            raise _not_a_token("logit_bias", unknown[0], vocabulary)
        if isinstance(asked, ChatRequest):
            try:
                return [self._checked(encode_prompt(asked.turns, self._tokenizer), "messages")]
            except InputError as error:
                raise ApiError(400, str(error), param="messages", code="invalid_value") from error
        assert isinstance(asked, CompletionRequest)
        return [self._checked(self._plain(prompt), "prompt") for prompt in asked.prompts]

    def _plain(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Token ids of a text without the chat template, as the tokenizer gives them; ids as they are."""
        if isinstance(prompt, str):
            tokens: Sequence[int] = self._tokenizer(prompt)["input_ids"]
            return tokens
        if unknown := [token for token in prompt if token >= len(self._tokenizer)]:
            raise _not_a_token("prompt", unknown[0], len(self._tokenizer))
        return prompt

    def _checked(self, prompt: Sequence[int], key: str) -> tuple[int, ...]:
        limit = self._limits.prompt_tokens
        if self._limits.context is not None:
            limit = min(limit, self._limits.context - 1)
        if len(prompt) > limit:
            raise ApiError(
                413, f"{key}: expected at most {limit} tokens, got {len(prompt)}", param=key,
                code="context_length_exceeded",
            )  # fmt: skip
        vocabulary = self._limits.vocabulary
        if vocabulary is not None and max(prompt, default=0) >= vocabulary:
            raise _not_a_token(key, max(prompt), vocabulary)
        return tuple(prompt)

    def _length(self, asked: GenerationRequest, prompt: int) -> int:
        """Limit of an answer: what is asked for, but at most the server's limit and the rest of the context."""
        length = min(asked.requested_tokens or self._limits.new_tokens, self._limits.new_tokens)
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
            ApiError: 429, if there are not enough; 400, if there never are.
        """
        if count > self._limit:
            text = f"n: expected at most {self._limit} answers to a request, got {count}"
            raise ApiError(400, text, param="n", code="invalid_value")
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


def _num_answers(asked: GenerationRequest) -> int:
    return asked.n * (len(asked.prompts) if isinstance(asked, CompletionRequest) else 1)


def _not_a_token(key: str, token: int, vocabulary: int) -> ApiError:
    text = f"{key}: expected ids of tokens from 0 to {vocabulary - 1}, got {token}"
    return ApiError(400, text, param=key, code="invalid_value")


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _disconnected(request: Request) -> None:
    """Return when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
