"""The messages of a conversation in OpenAI's and in ShareGPT's form: roles, text parts, tool calls, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fl_lightning.data.record_keys import check_one_of, check_unread_keys
from fl_lightning.data.records import Turn

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_NAMES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""{name in a file: role}; ShareGPT's names among them."""

READ_KEYS = ("role", "from", "content", "value", "weight", "name", "tool_calls", "function_call", "tool_call_id")


def parse_messages(messages: object, key: str) -> tuple[list[Turn], list[str]]:
    """(turns, keys that are not read) of a list of messages.

    Args:
        messages: a JSON value.
        key: that holds it, for messages.

    Raises:
        ValueError: saying which message is not one.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key!r}: expected a list of {{role, content}} with at least one message")
    turns, unread = [], []
    for number, message in enumerate(messages):
        try:
            turn = _parse_message(message)
            names = check_unread_keys(message, READ_KEYS, [turn.content])
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from error
        turns.append(turn)
        unread += [f"{key}.{name}" for name in names]
    return turns, list(dict.fromkeys(unread))


def _parse_message(message: object) -> Turn:
    name = message.get("role") or message.get("from") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(name, str) or name not in ROLE_NAMES:
        raise ValueError(f"expected an object with content and one of the roles {', '.join(ROLES)}")
    for keys in (("role", "from"), ("content", "value"), ("tool_calls", "function_call")):
        check_one_of(message, *keys)
    role = ROLE_NAMES[name]
    key = "content" if message.get("content") is not None or "value" not in message else "value"
    if name == "function_call":
        calls, content = parse_tool_calls({"tool_calls": _from_json(message.get(key), key)}), ""
    else:
        calls = parse_tool_calls(message)
        content = parse_text(message, key, may_be_empty=bool(calls) or role == "tool")
    if calls and role != "assistant":
        raise ValueError(f"'tool_calls': expected the role assistant, got {name!r}")
    weight = message.get("weight")
    if weight is not None and (not isinstance(weight, int | float) or weight not in (0, 1)):
        raise ValueError(f"'weight': expected 0 (not learned) or 1, got {weight!r:.40}")
    return Turn(
        role,
        content,
        calls,
        _optional_text(message, "name"),
        _optional_text(message, "tool_call_id"),
        weight is None or bool(weight),
    )


def parse_text(value: Mapping[str, Any], key: str, what: str = "text", *, may_be_empty: bool = False) -> str:
    """The text under a key: a string, or a list of parts ``{"type": "text", "text": ...}``, which are joined.

    Raises:
        ValueError: if there is none, or a part is an image or another thing that is not text.
    """
    content = value.get(key)
    if isinstance(content, list) and content:
        content = "".join(_parse_part(part, key) for part in content)
    if may_be_empty and content in (None, "", []):
        return ""
    if not isinstance(content, str) or not (may_be_empty or content.strip()):
        got = "nothing" if content is None else repr(content)[:40]
        raise ValueError(f"no {what}: {key!r}: expected text, got {got}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r}: expected valid Unicode, got half of a surrogate pair") from error
    return content


def _parse_part(part: object, key: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"{key!r}: expected parts of the type text, got {kind!r:.40}; only text is learned")
    check_unread_keys(part, ("type", "text"), ())
    return str(part["text"])


def _optional_text(message: Mapping[str, Any], key: str) -> str | None:
    return parse_text(message, key) if message.get(key) is not None else None


def parse_tool_calls(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The calls of a message in OpenAI's form, with arguments as an object, as chat templates expect them.

    Example:
        >>> parse_tool_calls({"tool_calls": [{"function": {"name": "now", "arguments": '{"zone": "UTC"}'}}]})
        ({'type': 'function', 'function': {'name': 'now', 'arguments': {'zone': 'UTC'}}},)

    Raises:
        ValueError: if a call has no name, or its arguments are not an object.
    """
    calls = message.get("tool_calls") or message.get("function_call") or []
    parsed = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError("'tool_calls': expected a list of {function: {name, arguments}}")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _from_json(arguments, "arguments")
        if not isinstance(arguments, dict):
            raise ValueError(f"'arguments': expected an object, got {type(arguments).__name__}")
        identifier = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        parsed.append(
            {"type": "function", **identifier, "function": {"name": function["name"], "arguments": arguments}}
        )
    _check_json(parsed, "tool_calls")
    return tuple(parsed)


def parse_tools(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """JSON schemas of the functions that the assistant may call: ``tools`` or ``functions``, also as JSON text.

    Raises:
        ValueError: if they are not a list of functions with names.
    """
    tools = value.get("tools") or value.get("functions") or []
    tools = _from_json(tools, "tools") if isinstance(tools, str) else tools
    schemas: list[Mapping[str, Any]] = []
    for tool in tools if isinstance(tools, list) else [None]:
        schema: dict[str, Any] = tool if isinstance(tool, dict) else {}
        function = schema.get("function", schema)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError("'tools': expected a list of {type: function, function: {name, parameters}}")
        schemas.append({**({} if function is schema else schema), "type": "function", "function": function})
    _check_json(schemas, "tools")
    return schemas


def _from_json(text: object, key: str) -> Any:
    try:
        if isinstance(text, str):
            return json.loads(text)
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{key!r}: expected JSON, got {text!r:.40}")


def _check_json(value: object, key: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key!r}: expected valid Unicode and no NaN, in values that are not nested deeply") from error
