"""A record: the turns of a conversation, of which the supervised ones are learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """A message of a conversation.

    Attributes:
        role: system, developer, user, assistant or tool; text for a record without a conversation.
        content: its text; may be empty beside tool calls.
        tool_calls: of an assistant, in OpenAI's form: {"type": "function", "function": {"name", "arguments"}}.
        name: of the speaker, or of the tool that returned `content`.
        tool_call_id: the call that a tool turn answers.
        weight: False excludes an assistant turn from the loss.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    weight: bool = True

    @property
    def supervised(self) -> bool:
        """Whether the loss is computed on this turn."""
        return self.weight and self.role in ("assistant", "text")

    def as_message(self) -> dict[str, Any]:
        """The message as a chat template receives it; keys without a value are left out.

        Example:
            >>> Turn("tool", "21 °C", name="weather").as_message()
            {'role': 'tool', 'content': '21 °C', 'name': 'weather'}
        """
        optional = {"tool_calls": list(self.tool_calls), "name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": self.role, "content": self.content, **{k: v for k, v in optional.items() if v}}


class Record(list[Turn]):
    """The turns of a conversation.

    Args:
        turns: in order.
        tools: JSON schemas of the functions that the assistant may call, as `apply_chat_template` takes them.
        location: file and line (or index), for messages.
        unread_keys: keys of the JSON value that are not read, such as ``id``; those of messages as ``messages.id``.

    Attributes:
        value: the JSON value that the record was read from.
    """

    def __init__(
        self,
        turns: Iterable[Turn],
        tools: Sequence[Mapping[str, Any]] = (),
        location: str = "",
        unread_keys: Sequence[str] = (),
    ) -> None:
        super().__init__(turns)
        self.tools, self.location, self.unread_keys = list(tools), location, list(unread_keys)
        self.value: Mapping[str, Any] = {}
