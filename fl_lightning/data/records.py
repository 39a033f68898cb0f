"""One record of text: what stands in a line of JSONL, and the conversation it means.

Accepted: ``{"instruction", "input", "output"}``, ``{"prompt", "completion"}``, ``{"messages": [{role, content}]}`` and
``{"text"}``. Every record ends up as a list of `Turn`, of which the supervised ones are learned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError

FORMS = "{instruction, input, output}, {prompt, completion}, {messages} or {text}"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """Something said: `role` is system, user or assistant, or text for a record without a conversation."""

    role: str
    content: str

    @property
    def supervised(self) -> bool:
        """Whether the loss is taken on this turn."""
        return self.role in ("assistant", "text")


Record = list[Turn]


def parse_record(value: object) -> Record:
    r"""The conversation in one JSON value.

    Raises:
        ValueError: saying what is missing; the caller adds file and line.

    Example:
        >>> parse_record({"instruction": "Add", "input": "1 1", "output": "2"})[0].content
        'Add\n\n1 1'
    """
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, wanted an object such as {FORMS}")
    if "messages" in value:
        return _parse_messages(value["messages"])
    if "instruction" in value or "output" in value:
        instruction, extra = _text(value, "instruction"), value.get("input") or ""
        if not isinstance(extra, str):
            raise ValueError(f"'input' is {type(extra).__name__}, wanted text")
        prompt = f"{instruction}\n\n{_text(value, 'input')}" if extra.strip() else instruction
        return [Turn("user", prompt), Turn("assistant", _text(value, "output", "response"))]
    if "prompt" in value or "completion" in value:
        return [Turn("user", _text(value, "prompt")), Turn("assistant", _text(value, "completion", "response"))]
    if "text" in value:
        return [Turn("text", _text(value, "text"))]
    raise ValueError(f"got keys {str(sorted(value))[:200]}, wanted {FORMS}")


def _text(value: Mapping[str, Any], key: str, what: str = "text") -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"no {what}: {key!r} is {'missing' if found is None else repr(found)[:40]}, wanted text")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} holds half of a surrogate pair, wanted valid Unicode") from error
    return found


def _parse_messages(messages: object) -> Record:
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' wants a list of {role, content} with at least one message")
    turns: Record = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"message {number}: wanted an object with role {', '.join(ROLES)} and content")
        turns.append(Turn(message["role"], _text(message, "content")))
    if not any(turn.supervised for turn in turns):
        raise ValueError("no response: no message has the role assistant, wanted at least one")
    return turns


def read_records(path: Path) -> list[Record]:
    """All records of a ``.jsonl`` (one object a line) or ``.json`` (a list of objects) file, in file order.

    Blank lines are passed over.

    Raises:
        InputError: naming file and line (or index), for anything that is not a record, or if there is none.
    """
    records = []
    for _, found in scan_records(path):
        if isinstance(found, InputError):
            raise found
        records.append(found)
    if not records:
        raise InputError(f"{path}: no records; wanted at least one of {FORMS}, or remove the client")
    return records


def scan_records(path: Path) -> Iterator[tuple[str, Record | InputError]]:
    """(file and line or index, the record or what is wrong with it) of everything in a file, in file order.

    Raises:
        InputError: if the file as a whole cannot be read.
    """
    if os.path.exists(path) and not path.is_file():  # a FIFO would wait for its writer
        raise InputError(f"{path}: cannot be read (not a regular file); wanted a JSONL file of records")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); wanted a JSONL file of records") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    return _scan_list(path, text) if path.suffix == ".json" else _scan_lines(path, text)


def _scan_lines(path: Path, text: str) -> Iterator[tuple[str, Record | InputError]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, InputError(f"{where}: not valid JSON ({_reason(error)}); wanted one record a line")
            continue
        yield where, _parsed(where, value)


def _scan_list(path: Path, text: str) -> Iterator[tuple[str, Record | InputError]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: not valid JSON ({_reason(error)}); wanted a list of records") from error
    if not isinstance(values, list):
        raise InputError(f"{path}: got {type(values).__name__}, wanted a list of records")
    for index, value in enumerate(values):
        where = f"{path}: record {index}"
        yield where, _parsed(where, value)


def _parsed(where: str, value: object) -> Record | InputError:
    try:
        return parse_record(value)
    except ValueError as error:
        return InputError(f"{where}: {error}")


def _reason(error: Exception) -> str:
    """Why a text is no JSON; of `json`'s own messages the line is left out, which is not that of the file."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
