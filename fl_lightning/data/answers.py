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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any

from fl_lightning.data.chat_template import has_answer_marks, render
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
        self._tokenizer = tokenizer
        marks = [re.escape(tokenizer.convert_ids_to_tokens(token)) for token in ends]
        self._end = re.compile("|".join(marks) if marks else r"(?!)")
        self._whole: dict[str, bool] = {}

    def text(self, record: Record, location: str) -> str:
        """The text of a conversation that ends with an answer.

        It is that of the template for the whole conversation. Where this leaves out a turn which the prompt for the
        last answer has (Mistral writes a system turn only into a last user turn), it is that prompt and the answer.

        Raises:
            InputError: if the template refuses the record, or leaves out a turn, tool calls or tools.
        """
        if self._is_whole(record, location):
            return self._render(record, location)
        last, whole = len(record) - 1, self._render(record, location)
        start, _ = self._locate(record, last, whole, location, self._render)
        return self._render(_before(record, last), location, add_generation_prompt=True) + whole[start:]

    def find(self, record: Record, text: str, location: str) -> list[tuple[int, int]]:
        """(start, end) of the answer of each supervised turn in `text`, the text of the record.

        Raises:
            InputError: if an answer cannot be located.
        """
        return [self._locate(record, i, text, location, self.text) for i, turn in enumerate(record) if turn.supervised]

    def check_prompt(self, record: Record, location: str) -> None:
        """Check that a prompt has every turn, tool call and tool.

        Raises:
            InputError: naming the first that the template leaves out.
        """
        if missing := self._missing(record, location, add_generation_prompt=True):
            raise _left_out(missing[0], location)

    def _is_whole(self, record: Record, location: str) -> bool:
        """Whether the text of the whole conversation has every turn; kinds of conversations are checked once."""
        kind = repr([(t.role, bool(t.content), len(t.tool_calls)) for t in record] + [bool(record.tools)])
        if kind not in self._whole:
            missing, last = self._missing(record, location), len(record) - 1
            if missing and (
                any(number == last for number, _ in missing)
                or has_answer_marks(self._tokenizer, record.tools)
                or self._missing(_before(record, last), location, add_generation_prompt=True)
            ):
                raise _left_out(missing[0], location)
            self._whole[kind] = not missing
        return self._whole[kind]

    def _missing(self, record: Record, location: str, *, add_generation_prompt: bool = False) -> list[tuple[int, str]]:
        """(number of the turn, what the template leaves out of it); tools count as part of the first turn."""
        turns: list[Turn] = []
        expected: dict[str, tuple[int, str]] = {}
        for number, turn in enumerate(record):
            content, call = STAND_IN.format(number), STAND_IN.format(f"{number}call")
            if turn.content:
                expected[content] = number, f"message {number} ({turn.role})"
            if turn.tool_calls:
                expected[call] = number, f"the tool calls of message {number}"
            turns.append(_with_arguments(replace(turn, content=content if turn.content else ""), call))
        tools = record.tools
        if tools:
            name = STAND_IN.format("tool")
            tools, expected[name] = [_renamed(tools[0], name), *tools[1:]], (0, "the tools")
        text = self._render(Record(turns, tools), location, add_generation_prompt=add_generation_prompt)
        return [missing for stand_in, missing in expected.items() if stand_in not in text]

    def _locate(
        self, record: Record, number: int, text: str, location: str, text_of: Callable[[Record, str], str]
    ) -> tuple[int, int]:
        """(start, end) of one answer in the text that `text_of` gives for the record."""
        turn, before = record[number], _before(record, number)
        prompt = self._prompt(before)
        start = len(prompt) if prompt is not None and text.startswith(prompt) else None
        if start is not None and not turn.tool_calls:  # the usual case: the prompt, then the content as it is
            content = turn.content.strip()
            begin = start + len(text[start:]) - len(text[start:].lstrip())
            if text.startswith(content, begin):
                return start, self._behind_end(text, begin + len(content))
        stand_in = STAND_IN.format(f"answer{number}")
        changed = _with_arguments(turn, stand_in) if turn.tool_calls else replace(turn, content=stand_in)
        other = text_of(_replaced(record, number, changed), location)
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
        alone = self._render(Record([*before, changed], record.tools), location)
        return start, self._behind_call(text, end, alone.rpartition(stand_in)[2].rstrip())

    def _header(self, record: Record, number: int, changed: Turn, stand_in: str) -> int | None:
        """How many characters before the stand-in the answer begins; None if that cannot be found.

        The text between the previous turn's content and this one's is compared with what the prompt ends with: Qwen3's
        empty thoughts before an answer belong to the answer if the prompt does not have them.
        """
        if number == 0 or not record[number - 1].content:
            return None
        previous = STAND_IN.format(f"before{number}")
        asked = _replaced(record, number - 1, replace(record[number - 1], content=previous))
        prompt = self._prompt(_before(asked, number))
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

    def _behind_call(self, text: str, position: int, closing: str) -> int:
        """The position behind a tool call that is complete up to its last argument.

        Args:
            text: the whole conversation.
            position: behind the last argument.
            closing: what follows the last argument in a conversation that ends with this call.
        """
        if end := self._end.search(closing):
            closing = closing[: end.end()]
        if text.startswith(closing, position):
            position += len(closing)
        special = special_pattern(self._tokenizer)
        if end or re.search(rf"(?:{special})$", closing):
            return position
        mark = re.compile(rf"\s*(?:{special})").match(text, position)
        return mark.end() if mark else position

    def _render(self, record: Record, location: str, *, add_generation_prompt: bool = False) -> str:
        return render(
            record, self._tokenizer, location, tools=record.tools, add_generation_prompt=add_generation_prompt
        )

    def _prompt(self, record: Record) -> str | None:
        """The text that the model continues; None if the template refuses it or there is no turn."""
        if not record:
            return None
        try:
            return self._render(record, "", add_generation_prompt=True)
        except InputError:
            return None


def _before(record: Record, number: int) -> Record:
    """The turns before a turn."""
    return Record(record[:number], record.tools)


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


def _left_out(missing: tuple[int, str], location: str) -> InputError:
    what = missing[1]
    hint = "; data.system_turns: merge puts it into the first user turn" if "(system)" in what else ""
    return InputError(
        f"{location}: the tokenizer's chat template leaves out {what}{hint}; remove it, or give a template that writes "
        "it as data.chat_template"
    )


def _not_located(number: int, location: str) -> InputError:
    return InputError(
        f"{location}: the answer of message {number} cannot be located in the text of the chat template; mark answers "
        "with {% generation %} in a template of your own, and give it as data.chat_template"
    )
