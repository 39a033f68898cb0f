"""Where the answers are in the text of a whole conversation.

Templates do not only append: Qwen3 drops the thoughts of earlier answers, Phi-3 ends only the last turn, Mistral moves
the system turn. So a conversation is rendered once, and each answer is found in that text. It begins where the prompt
for it ends, or where the text stops agreeing with that prompt, and ends behind its end token. An answer is learned as
it reads there, even if the template writes it in another way once a later turn follows.

To find an answer, its content is replaced by a stand-in: what the two texts have in common is not the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any

from fl_lightning.data.chat_template import render
from fl_lightning.data.end_tokens import STAND_IN, special_pattern
from fl_lightning.data.records import Record, Turn
from fl_lightning.errors import InputError


class AnswerFinder:
    """Finds answers in rendered conversations.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        ends: ids of the tokens that end an answer, see `fl_lightning.data.end_tokens`.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        self._tokenizer, self._special = tokenizer, special_pattern(tokenizer)
        marks = [re.escape(tokenizer.convert_ids_to_tokens(token)) for token in ends]
        self._end = re.compile("|".join(marks) if marks else r"(?!)")
        self._complete: set[str] = set()

    def find(self, record: Record, text: str, location: str) -> list[tuple[int, int]]:
        """(start, end) of the answer of each supervised turn in `text`, the rendered record.

        Raises:
            InputError: if an answer cannot be located.
        """
        return [self._locate(record, i, text, location) for i, turn in enumerate(record) if turn.supervised]

    def check_complete(self, record: Record, location: str) -> None:
        """Check that the template writes every turn, tool call and tool; kinds of conversations are checked once.

        Raises:
            InputError: naming the first that it leaves out.
        """
        kind = repr([(t.role, bool(t.content), len(t.tool_calls)) for t in record] + [bool(record.tools)])
        if kind in self._complete:
            return
        turns, expected = [], {}
        for number, turn in enumerate(record):
            content, call = STAND_IN.format(number), STAND_IN.format(f"{number}call")
            if turn.content:
                expected[content] = f"message {number} ({turn.role})"
            if turn.tool_calls:
                expected[call] = f"the tool calls of message {number}"
            turns.append(_with_arguments(replace(turn, content=content if turn.content else ""), call))
        tools = record.tools
        if tools:
            name = STAND_IN.format("tool")
            tools, expected[name] = [_renamed(tools[0], name), *tools[1:]], "the tools"
        text = self._render(Record(turns, tools), location)
        for stand_in, what in expected.items():
            if stand_in not in text:
                hint = "; data.system_turns: merge puts it into the first user turn" if "(system)" in what else ""
                raise InputError(
                    f"{location}: the tokenizer's chat template leaves out {what}{hint}; remove it, or give a template "
                    "that writes it as data.chat_template"
                )
        self._complete.add(kind)

    def _locate(self, record: Record, number: int, text: str, location: str) -> tuple[int, int]:
        turn, before = record[number], Record(record[:number], record.tools)
        prompt = self._prompt(before)
        start = len(prompt) if prompt is not None and text.startswith(prompt) else None
        if start is not None and not turn.tool_calls:  # the usual case: the prompt, then the content as it is
            content = turn.content.strip()
            begin = start + len(text[start:]) - len(text[start:].lstrip())
            if text.startswith(content, begin):
                return start, self._behind_end(text, begin + len(content))
        stand_in = STAND_IN.format("")
        changed = _with_arguments(turn, stand_in) if turn.tool_calls else replace(turn, content=stand_in)
        other = self._render(_replaced(record, number, changed), location)
        if other.count(stand_in) != 1:
            raise _not_located(number, location)
        at = other.index(stand_in)
        rest = other[at + len(stand_in) :]
        begin = min(at, len(commonprefix([text, other])))
        end = len(text) - len(commonprefix([text[begin:][::-1], rest[::-1]]))
        if start is None:
            header = self._header(record, number, changed, stand_in)
            if header is None and turn.tool_calls:
                raise _not_located(number, location)
            start = min(begin, at - (header or 0))
        if not turn.tool_calls:
            return start, self._behind_end(text, end)
        return start, self._behind_call(text, end, self._render(Record([*before, changed], record.tools), location))

    def _header(self, record: Record, number: int, changed: Turn, stand_in: str) -> int | None:
        """How many characters before the stand-in the answer begins; None if that cannot be found.

        The text between the previous turn's content and this one's is compared with what the prompt ends with: Qwen3's
        empty thoughts before an answer belong to the answer if the prompt does not have them.
        """
        if number == 0 or not record[number - 1].content:
            return None
        previous = STAND_IN.format("before")
        asked = _replaced(record, number - 1, replace(record[number - 1], content=previous))
        prompt = self._prompt(Record(asked[:number], record.tools))
        try:
            text = self._render(_replaced(asked, number, changed), "")
        except InputError:
            return None
        _, found, behind = text.partition(previous)
        if prompt is None or previous not in prompt or not found or stand_in not in behind:
            return None
        header, opening = behind.partition(stand_in)[0], prompt.rpartition(previous)[2]
        return len(header) - len(commonprefix([header, opening]))

    def _behind_end(self, text: str, position: int) -> int:
        """The position behind the end token (or the end of the text) that follows after white space, if any."""
        end = re.compile(rf"\s*(?:{self._end.pattern}|\Z)").match(text, position)
        return end.end() if end else position

    def _behind_call(self, text: str, position: int, alone: str) -> int:
        """The position behind a tool call that is complete up to its last argument.

        Args:
            text: the whole conversation.
            position: behind the last argument.
            alone: the conversation up to this call, whose last argument is a stand-in.
        """
        closing = alone.rpartition(STAND_IN.format(""))[2].rstrip()
        if end := self._end.search(closing):
            closing = closing[: end.end()]
        if text.startswith(closing, position):
            position += len(closing)
        if end or re.search(rf"(?:{self._special})$", closing):
            return position
        mark = re.compile(rf"\s*(?:{self._special})").match(text, position)
        return mark.end() if mark else position

    def _render(self, record: Record, location: str) -> str:
        return render(record, self._tokenizer, location, tools=record.tools)

    def _prompt(self, record: Record) -> str | None:
        """The text that the model continues; None if the template refuses it or there is no turn."""
        if not record:
            return None
        try:
            return render(record, self._tokenizer, "", tools=record.tools, add_generation_prompt=True)
        except InputError:
            return None


def _replaced(record: Record, number: int, turn: Turn) -> Record:
    return Record([*record[:number], turn, *record[number + 1 :]], record.tools)


def _with_arguments(turn: Turn, text: str) -> Turn:
    """A turn with a text as the only argument of its last tool call."""
    if not turn.tool_calls:
        return turn
    *others, call = turn.tool_calls
    function = call.get("function", call)
    arguments: Any = {"value": text}
    function = {
        **function,
        "arguments": json.dumps(arguments) if isinstance(function.get("arguments"), str) else arguments,
    }
    return replace(turn, tool_calls=(*others, {**call, "function": function} if "function" in call else function))


def _renamed(tool: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tool with another name."""
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": {**tool["function"], "name": name}}
    return {**tool, "name": name}


def _not_located(number: int, location: str) -> InputError:
    return InputError(
        f"{location}: the answer of message {number} cannot be located in the text of the chat template; mark answers "
        "with {% generation %} in a template of your own, and give it as data.chat_template"
    )
