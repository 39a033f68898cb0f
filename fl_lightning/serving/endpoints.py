"""The HTTP side: OpenAI's chat completions and models, over LitServe's queues to the process that computes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec

from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError
from fl_lightning.serving.messages import Ask, Cancel, Load
from fl_lightning.serving.metrics import Figures
from fl_lightning.serving.middleware import CHAT
from fl_lightning.serving.model_registry import Offer
from fl_lightning.serving.requests import ApiError, ChatRequest, busy, read_request, unknown_model
from fl_lightning.serving.responses import Answers

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
        answers = Answers(self._tokenizer, self._figures, self._limits.seconds, self.response_buffer, self._post)
        if asked.stream:
            return _Events(answers.events(asked, asks), media_type="text/event-stream")
        whole = asyncio.ensure_future(answers.whole(asked, asks))
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


class _Events(StreamingResponse):
    """A stream whose generator ends with it, wherever it stood when the client went away."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


def _refusal(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _gone(request: Request) -> None:
    """Come back when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
