"""Responses in the format of OpenAI's chat completions: whole, or as chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def body(self) -> dict[str, int]:
        """The JSON object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass
class Choice:
    """One answer to a request: text, finish reason, fingerprint of the adapter, number of tokens."""

    text: str = ""
    finish: str = "stop"
    fingerprint: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """The answers to one request.

    Attributes:
        model: name of the model.
        id: id of the response.
        created: seconds since 1970.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The whole response."""
        return {
            **self._head("chat.completion", choices[0].fingerprint),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": choice.finish,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage.body(),
        }

    def chunk(self, index: int, delta: dict[str, str], finish: str | None, fingerprint: str) -> str:
        """Part of a choice, as an event of the stream."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk", fingerprint), "choices": [choice]})

    def usage_chunk(self, usage: Usage, fingerprint: str) -> str:
        """The event with the number of tokens."""
        return event({**self._head("chat.completion.chunk", fingerprint), "choices": [], "usage": usage.body()})

    def _head(self, kind: str, fingerprint: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint,
        }


DONE = "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
