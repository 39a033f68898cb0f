"""The forms of a record: a JSON value, and the conversation that it stands for. docs/data.md lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fl_lightning.data.messages import parse_messages, parse_text, parse_tools
from fl_lightning.data.record_keys import check_one_of, check_unread_keys, is_empty
from fl_lightning.data.records import Record, Turn

FORMS = "{instruction, input, output}, {prompt, completion}, {messages}, {conversations} or {text}"

COMMON_KEYS = ("system", "tools", "functions", "parallel_tool_calls")
"""Of every form but text."""
PROMPT_KEYS = ("prompt", "completion", "history", *COMMON_KEYS)
INSTRUCTION_KEYS = ("instruction", "input", "output", "history", *COMMON_KEYS)
FORM_KEYS = {"messages", "conversations", "instruction", "output", "prompt", "completion", "text"}
"""Keys of which a record has at least one."""


def parse_record(value: object) -> Record:
    r"""The conversation in one JSON value.

    Raises:
        ValueError: saying what is missing or not understood; the caller adds file and line.

    Example:
        >>> parse_record({"instruction": "Add", "input": "1 1", "output": "2"})[0].content
        'Add\n\n1 1'
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an object such as {FORMS}, got {type(value).__name__}")
    if preferences := [key for key in ("chosen", "rejected") if not is_empty(value.get(key))]:
        raise ValueError(
            f"{' and '.join(preferences)}: expected one response to learn, got a record of preferences; keep the "
            "response to learn, as completion, and remove the other"
        )
    filled = {key for key, item in value.items() if not is_empty(item)}  # tables have null for keys of other forms
    if not filled & FORM_KEYS:  # what is empty is named below
        filled = {key for key, item in value.items() if item is not None}
    if filled & {"messages", "conversations"}:
        key = "messages" if "messages" in filled else "conversations"
        turns, unread = parse_messages(value[key], key)
        read: Sequence[str] = (key, *COMMON_KEYS)
    elif filled & {"instruction", "output"}:
        turns, unread, read = _parse_instruction(value), [], INSTRUCTION_KEYS
    elif filled & {"prompt", "completion"}:
        (turns, unread), read = _parse_prompt(value), PROMPT_KEYS
    elif "text" in filled:
        turns, unread, read = [Turn("text", parse_text(value, "text"))], [], ("text",)
    else:
        raise ValueError(f"expected {FORMS}, got keys {str(sorted(filled))[:200]}")
    if read != ("text",):
        check_one_of(value, "tools", "functions")
        turns = _with_system(value, turns)
    if not any(turn.supervised for turn in turns):
        raise ValueError("no response: expected at least one message with the role assistant and without weight 0")
    unread += check_unread_keys(value, read, [turn.content for turn in turns])
    return Record(turns, parse_tools(value) if "tools" in read else (), unread_keys=unread)


def _parse_instruction(value: Mapping[str, Any]) -> list[Turn]:
    instruction = parse_text(value, "instruction")
    extra = parse_text(value, "input", may_be_empty=True)
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [*_history(value), Turn("user", prompt), Turn("assistant", parse_text(value, "output", "response"))]


def _parse_prompt(value: Mapping[str, Any]) -> tuple[list[Turn], list[str]]:
    """Turns of a prompt and a completion, each a text or a list of messages; the prompt's turns are not learned."""
    prompt, completion = value.get("prompt"), value.get("completion")
    unread: list[str] = []
    if isinstance(prompt, list):
        turns, unread = parse_messages(prompt, "prompt")
        if value.get("history"):
            raise ValueError("'history': expected earlier turns in the prompt's list of messages, got both")
        turns = [replace(turn, weight=False) for turn in turns]
    else:
        turns = [*_history(value), Turn("user", parse_text(value, "prompt"))]
    if not isinstance(completion, list):
        return [*turns, Turn("assistant", parse_text(value, "completion", "response"))], unread
    answer, more = parse_messages(completion, "completion")
    if not any(turn.supervised for turn in answer):
        raise ValueError("no response: 'completion': expected at least one message with the role assistant")
    return [*turns, *answer], unread + more


def _history(value: Mapping[str, Any]) -> list[Turn]:
    """Earlier questions and answers; the answers are learned too."""
    history = [] if is_empty(value.get("history")) else value["history"]
    turns = []
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("'history': expected a list of pairs [user, assistant]")
        turns += [
            Turn(role, parse_text({"history": text}, "history"))
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return turns


def _with_system(value: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
    if is_empty(value.get("system")):
        return turns
    if turns[0].role in ("system", "developer"):
        raise ValueError("'system': expected one system turn, got this key and a first message with the role system")
    return [Turn("system", parse_text(value, "system")), *turns]
