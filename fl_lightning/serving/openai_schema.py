"""Responses in the formats of OpenAI's chat completions and completions: whole, or as chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
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


class Completion:
    """Formats the answers to one request for text to be continued (``POST /v1/completions``).

    Args:
        model: name of the model.
    """

    object, chunk_object, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.object,
            "created": int(time.time()),
            "model": model,
        }

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The whole response."""
        return {
            **self._head,
            "system_fingerprint": choices[0].fingerprint,
            "choices": [
                {"index": index, **self._whole(choice.text), "logprobs": None, "finish_reason": choice.finish}
                for index, choice in enumerate(choices)
            ],
            "usage": usage.body(),
        }

    def chunk(self, index: int, text: str, finish: str | None, fingerprint: str) -> str:
        """Part of a choice, as an event of the stream; with `finish` the last part, which has no text."""
        choice = {"index": index, **self._part(text), "logprobs": None, "finish_reason": finish}
        return self._event([choice], fingerprint)

    def first_chunk(self, index: int) -> str:
        """What a stream sends before the text of a choice; empty for nothing."""
        return ""

    def usage_chunk(self, usage: Usage, fingerprint: str) -> str:
        """The event with the number of tokens."""
        return self._event([], fingerprint, usage=usage.body())

    def _event(self, choices: Sequence[Any], fingerprint: str, **more: Any) -> str:
        head = {**self._head, "object": self.chunk_object, "system_fingerprint": fingerprint}
        return event({**head, "choices": choices, **more})

    def _whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _part(self, text: str) -> dict[str, Any]:
        return {"text": text}


class ChatCompletion(Completion):
    """Formats the answers to one conversation (``POST /v1/chat/completions``)."""

    object, chunk_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first_chunk(self, index: int) -> str:
        """The event that says whose turn it is."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._event([choice], "")

    def _whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


DONE = "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
