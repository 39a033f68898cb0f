"""Records: the values in a JSONL or JSON file, and the conversation that each stands for.

Accepted: ``{"instruction", "input", "output"}``, ``{"prompt", "completion"}``, ``{"messages": [{role, content}]}`` and
``{"text"}``. Every record becomes a list of `Turn`; the supervised ones are learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_text

FORMS = "{instruction, input, output}, {prompt, completion}, {messages} or {text}"
ROLES = ("system", "user", "assistant")


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
    """

    def __init__(self, turns: Iterable[Turn], tools: Sequence[Mapping[str, Any]] = (), location: str = "") -> None:
        super().__init__(turns)
        self.tools, self.location = list(tools), location


def parse_record(value: object) -> Record:
    r"""The conversation in one JSON value.

    Raises:
        ValueError: saying what is missing; the caller adds file and line.

    Example:
        >>> parse_record({"instruction": "Add", "input": "1 1", "output": "2"})[0].content
        'Add\n\n1 1'
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an object such as {FORMS}, got {type(value).__name__}")
    if "messages" in value:
        return _parse_messages(value["messages"])
    if "instruction" in value or "output" in value:
        instruction, extra = _text(value, "instruction"), value.get("input") or ""
        if not isinstance(extra, str):
            raise ValueError(f"'input': expected text, got {type(extra).__name__}")
        prompt = f"{instruction}\n\n{_text(value, 'input')}" if extra.strip() else instruction
        return Record([Turn("user", prompt), Turn("assistant", _text(value, "output", "response"))])
    if "prompt" in value or "completion" in value:
        return Record([Turn("user", _text(value, "prompt")), Turn("assistant", _text(value, "completion", "response"))])
    if "text" in value:
        return Record([Turn("text", _text(value, "text"))])
    raise ValueError(f"expected {FORMS}, got keys {str(sorted(value))[:200]}")


def _text(value: Mapping[str, Any], key: str, what: str = "text") -> str:
    content = value.get(key)
    if not isinstance(content, str) or not content.strip():
        raise ValueError(
            f"no {what}: {key!r}: expected text, got {'nothing' if content is None else repr(content)[:40]}"
        )
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r}: expected valid Unicode, got half of a surrogate pair") from error
    return content


def _parse_messages(messages: object) -> Record:
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages': expected a list of {role, content} with at least one message")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(
                f"message {number}: expected an object with content and one of the roles {', '.join(ROLES)}"
            )
        turns.append(Turn(message["role"], _text(message, "content")))
    if not any(turn.supervised for turn in turns):
        raise ValueError("no response: expected at least one message with the role assistant")
    return Record(turns)


def read_records(path: Path) -> list[Record]:
    """All records of a ``.jsonl`` (one object per line) or ``.json`` (a list of objects) file, in file order.

    Blank lines are skipped.

    Raises:
        InputError: naming file and line (or index), for anything that is not a record, or if there is none.
    """
    records = []
    for _, record in scan_records(path):
        if isinstance(record, InputError):
            raise record
        records.append(record)
    if not records:
        raise InputError(f"{path}: no records; expected at least one of {FORMS}, or remove the client")
    return records


def scan_records(path: Path) -> Iterator[tuple[str, Record | InputError]]:
    """(file and line or index, the record or its error) of everything in a file, in file order.

    Raises:
        InputError: if the file as a whole cannot be read.
    """
    for location, value in scan_values(path):
        if isinstance(value, InputError):
            yield location, value
            continue
        try:
            record = parse_record(value)
        except ValueError as error:
            yield location, InputError(f"{location}: {error}")
            continue
        record.location = location
        yield location, record


def scan_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line or index, the JSON value or an `InputError`) of everything in a file, in file order.

    Args:
        path: ``.json`` is one list of values; any other ending is one value per line, and blank lines are skipped.

    Raises:
        InputError: if the file as a whole cannot be read.
    """
    text = read_text(path, "a file of records")
    return _scan_list(path, text) if path.suffix == ".json" else _scan_lines(path, text)


def _scan_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        location = f"{path}:{number}"
        try:
            yield location, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield location, InputError(f"{location}: not valid JSON ({_reason(error)}); expected one record per line")


def _scan_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: not valid JSON ({_reason(error)}); expected a list of records") from error
    if not isinstance(values, list):
        raise InputError(f"{path}: expected a list of records, got {type(values).__name__}")
    return ((f"{path}: record {index}", value) for index, value in enumerate(values))


def _reason(error: Exception) -> str:
    """Why a text is not JSON, without the line of `json`'s own message, which is not the line of the file."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
