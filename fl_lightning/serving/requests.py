"""Parsing and checking of a chat request, and the error response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from fl_lightning.data.records import Turn
from fl_lightning.errors import nearest
from fl_lightning.modeling.generation.token_sampling import Sampling

MAX_CHOICES, MAX_STOPS, SHOWN = 8, 4, 40
MAX_MESSAGES = 512
"""Limit of messages in a request: rendering the chat template costs their square."""


class ApiError(Exception):
    """An error response in the format that OpenAI's clients understand.

    Attributes:
        status: HTTP status.
        headers: additional headers.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self._param, self._code = status, param, code
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self._param, "code": self._code}}


class _Lenient(BaseModel):
    """Null values count as missing, as with OpenAI; unknown keys are ignored."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class TextPart(_Lenient):
    """One part of a message with several."""

    type: Literal["text"]
    text: str


class Message(_Lenient):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        parts = content if isinstance(content, list) else []
        for part in (part for part in parts if not isinstance(part, dict) or part.get("type") != "text"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"expected parts of type 'text', got {str(kind)[:40]!r}")
        return content

    @property
    def turn(self) -> Turn:
        """The message as the tokenizer expects it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(_Lenient):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(_Lenient):
    """The supported part of the body of ``POST /v1/chat/completions``."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    seed: int | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logprobs: bool = False
    tools: list[Any] = Field(default_factory=list)
    functions: list[Any] = Field(default_factory=list)
    response_format: dict[str, Any] = Field(default_factory=dict)

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role == "assistant":
            raise ValueError("expected a last message from the user, got one from the assistant")
        return messages

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str]) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > MAX_STOPS or not all(0 < len(text) <= 256 for text in stops):
            raise ValueError(f"expected at most {MAX_STOPS} texts of 1 to 256 characters")
        return stops

    @property
    def stops(self) -> Sequence[str]:
        """Stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def turns(self) -> list[Turn]:
        """The conversation so far."""
        return [message.turn for message in self.messages]

    def sampling(self, choice: int, seed: int) -> Sampling:
        """Sampling parameters of one choice.

        Args:
            choice: index from 0; every choice has a separate random stream.
            seed: used if the request has none.
        """
        choice_seed = (self.seed if self.seed is not None else seed) + choice
        return Sampling(
            self.temperature, self.top_p, self.presence_penalty, self.frequency_penalty, choice_seed % 2**63
        )


def read_request(body: bytes) -> ChatRequest:
    """Parse the body of a request.

    Raises:
        ApiError: 400, naming the key.

    Example:
        >>> read_request(b'{"model": "hr", "messages": [{"role": "user", "content": "Hello"}]}').turns[0].content
        'Hello'
    """
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from error
    except UnicodeEncodeError as error:
        raise ApiError(
            400, "the body has an unpaired surrogate, expected valid Unicode", code="invalid_json"
        ) from error
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON ({error}); expected an object", code="invalid_json") from error
    try:
        request = ChatRequest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ApiError(400, f"{where}: {first['msg']}", param=where, code="invalid_value") from error
    unsupported = {
        "logprobs": request.logprobs,
        "tools": bool(request.tools),
        "functions": bool(request.functions),
        "response_format": request.response_format.get("type", "text") != "text",
    }
    for key in (key for key, asked in unsupported.items() if asked):
        raise ApiError(400, f"{key}: not supported here; leave it out", param=key, code="unsupported_parameter")
    return request


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """404, with the names of the models."""
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    text = f"model {name[:100]!r} is not served{nearest(name[:100], known)}; expected one of {shown}"
    return ApiError(404, text, param="model", code="model_not_found")


def busy(running: int) -> ApiError:
    """429, with Retry-After."""
    text = f"{running} answers are running, which is the limit; try again"
    return ApiError(429, text, code="rate_limit_exceeded", retry_after=1)
