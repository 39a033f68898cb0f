"""Parsing and checking of requests for chat answers and for completions of a text, and the error response."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from fl_lightning.data.records import Turn
from fl_lightning.errors import nearest
from fl_lightning.modeling.generation.token_sampling import Sampling

MAX_CHOICES, MAX_STOPS, MAX_BIASES, SHOWN = 8, 4, 1024, 40
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


class _Strict(BaseModel):
    """Null values count as missing, as with OpenAI; a key that is not understood is an error."""

    model_config = ConfigDict(extra="forbid")

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """Keys that have no influence on an answer."""
    NEUTRAL: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """{key that is not supported: its values that ask for nothing special}."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {key: item for key, item in value.items() if item is not None and key not in cls.IGNORED}
        for key in [key for key in kept if key in cls.NEUTRAL]:
            if not any(kept[key] == neutral and type(kept[key]) is type(neutral) for neutral in cls.NEUTRAL[key]):
                raise ApiError(400, f"{key}: not supported here; leave it out", param=key, code="unsupported_parameter")
            del kept[key]
        return kept


class TextPart(_Strict):
    """One part of a message with several."""

    type: Literal["text"]
    text: str


class Function(_Strict):
    """The function of a tool call; its arguments, a JSON object in a text, are read."""

    name: str
    arguments: dict[str, Any]

    @field_validator("arguments", mode="before")
    @classmethod
    def _read(cls, arguments: Any) -> Any:
        return json.loads(arguments) if isinstance(arguments, str) else arguments


class ToolCall(_Strict):
    """A call of a tool in an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(_Strict):
    """One message of the conversation."""

    NEUTRAL: ClassVar = {"refusal": (), "annotations": ([],), "audio": (), "function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] = ""
    name: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        parts = content if isinstance(content, list) else []
        for part in (part for part in parts if not isinstance(part, dict) or part.get("type") != "text"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"expected parts of type 'text', got {str(kind)[:40]!r}")
        return content

    @model_validator(mode="after")
    def _something_is_said(self) -> Message:
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("expected content, got none")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"expected tool_calls of an assistant alone, got them of {self.role!r}")
        return self

    @property
    def turn(self) -> Turn:
        """The message as the tokenizer expects it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        calls = tuple(call.model_dump(exclude_none=True) for call in self.tool_calls)
        return Turn(self.role, text, calls, self.name, self.tool_call_id)


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False


class GenerationRequest(_Strict):
    """What both kinds of request have in common: how the answers are drawn and sent."""

    IGNORED = frozenset(
        ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
    )
    NEUTRAL: ClassVar = {"logprobs": (False, 0), "best_of": (1,)}

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    seed: int | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default_factory=dict, max_length=MAX_BIASES)

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str]) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > MAX_STOPS or not all(0 < len(text) <= 256 for text in stops):
            raise ValueError(f"expected at most {MAX_STOPS} texts of 1 to 256 characters")
        return stops

    @field_validator("logit_bias")
    @classmethod
    def _bounded(cls, biases: dict[int, float]) -> dict[int, float]:
        if not all(-100 <= bias <= 100 for bias in biases.values()):
            raise ValueError("expected numbers from -100 to 100")
        return biases

    @property
    def stops(self) -> Sequence[str]:
        """Stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def requested_tokens(self) -> int | None:
        """The requested limit of an answer's tokens."""
        return self.max_tokens

    def sampling(self, choice: int, seed: int) -> Sampling:
        """Sampling parameters of one choice.

        Args:
            choice: index from 0; every choice has a separate random stream.
            seed: used if the request has none.
        """
        choice_seed = (self.seed if self.seed is not None else seed) + choice
        biases = tuple(sorted((token, bias) for token, bias in self.logit_bias.items() if bias))
        return Sampling(
            self.temperature, self.top_p, self.presence_penalty, self.frequency_penalty, choice_seed % 2**63, biases
        )


class ChatRequest(GenerationRequest):
    """The supported part of the body of ``POST /v1/chat/completions``."""

    NEUTRAL: ClassVar = {
        **GenerationRequest.NEUTRAL,
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role == "assistant":
            raise ValueError("expected a last message from the user, got one from the assistant")
        return messages

    @property
    def requested_tokens(self) -> int | None:
        """The requested limit of an answer's tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def turns(self) -> list[Turn]:
        """The conversation so far."""
        return [message.turn for message in self.messages]


class CompletionRequest(GenerationRequest):
    """The supported part of the body of ``POST /v1/completions``: plain text, or ids of tokens, to be continued."""

    NEUTRAL: ClassVar = {**GenerationRequest.NEUTRAL, "echo": (False,), "suffix": ("",)}
    prompt: str | list[str] | list[NonNegativeInt] | list[list[NonNegativeInt]]

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Any) -> Any:
        if not all(_parts(prompt)):
            raise ValueError("expected text or tokens, got none")
        return prompt

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The texts or token ids to continue; each gets `n` answers."""
        return _parts(self.prompt)


def _parts(prompt: Any) -> Sequence[Any]:
    """The prompts of a list; a text, or a list of token ids, is one prompt."""
    return prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]


Request = TypeVar("Request", bound=GenerationRequest)


def read_request(kind: type[Request], body: bytes) -> Request:
    """Parse the body of a request.

    Raises:
        ApiError: 400, naming the key.

    Example:
        >>> body = b'{"model": "hr", "messages": [{"role": "user", "content": "Hello"}]}'
        >>> read_request(ChatRequest, body).turns[0].content
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
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        if first["type"] == "extra_forbidden":
            known = kind.model_fields if len(first["loc"]) == 1 else ()
            text = f"{where}: unknown key{nearest(where, known)}; leave it out"
            raise ApiError(400, text, param=where, code="unsupported_parameter") from error
        raise ApiError(400, f"{where}: {first['msg']}", param=where, code="invalid_value") from error


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """404, with the names of the models."""
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    text = f"model {name[:100]!r} is not served{nearest(name[:100], known)}; expected one of {shown}"
    return ApiError(404, text, param="model", code="model_not_found")


def busy(running: int) -> ApiError:
    """429, with Retry-After."""
    text = f"{running} answers are running, which is the limit; try again"
    return ApiError(429, text, code="rate_limit_exceeded", retry_after=1)
