"""A chat request, read and checked; and the error that says what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from fl_lightning.data.records import Turn
from fl_lightning.errors import nearest
from fl_lightning.modeling.generation.token_sampling import Sampling

MOST_CHOICES, MOST_STOPS, SHOWN = 8, 4, 40
MOST_MESSAGES = 512
"""Of a request: the chat template renders them anew for every answer among them, so that the work grows as their
square."""


class ApiError(Exception):
    """What is answered instead of an answer, in the form that OpenAI's clients know.

    Attributes:
        status: of HTTP.
        headers: beside the usual ones.
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
    """Keys that are null count as left out, as they do with OpenAI; those that we do not know are passed over."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class TextPart(_Lenient):
    """A part of a message that has several."""

    type: Literal["text"]
    text: str


class Message(_Lenient):
    """Something said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        parts = content if isinstance(content, list) else []
        for part in (part for part in parts if not isinstance(part, dict) or part.get("type") != "text"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"got a part of type {str(kind)[:40]!r}, wanted text, which is all that is understood")
        return content

    @property
    def turn(self) -> Turn:
        """The same as the tokenisation wants it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(_Lenient):
    """How to stream."""

    include_usage: bool = False


class ChatRequest(_Lenient):
    """The body of ``POST /v1/chat/completions``, as far as it is understood."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
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
            raise ValueError("the last message is the assistant's, wanted one to answer")
        return messages

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str]) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > MOST_STOPS or not all(0 < len(text) <= 256 for text in stops):
            raise ValueError(f"wanted at most {MOST_STOPS} texts of 1 to 256 characters")
        return stops

    @property
    def stops(self) -> Sequence[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def turns(self) -> list[Turn]:
        """What was said so far."""
        return [message.turn for message in self.messages]

    def sampling(self, choice: int, seed: int) -> Sampling:
        """How the tokens of a choice are drawn.

        Args:
            choice: from 0; every one has draws of its own.
            seed: where the request gives none.
        """
        own = (self.seed if self.seed is not None else seed) + choice
        return Sampling(self.temperature, self.top_p, self.presence_penalty, self.frequency_penalty, own % 2**63)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

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
        raise ApiError(400, "the body holds half of a surrogate pair, wanted Unicode", code="invalid_json") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON ({error}); wanted an object", code="invalid_json") from error
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
    """404, with the names that there are."""
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    text = f"model {name[:100]!r} is not served{nearest(name[:100], known)}; wanted one of {shown}"
    return ApiError(404, text, param="model", code="model_not_found")


def busy(under_way: int) -> ApiError:
    """429, with when to try again."""
    text = f"{under_way} answers are under way, which is as many as there is room for; try again"
    return ApiError(429, text, code="rate_limit_exceeded", retry_after=1)
