"""Records as token ids: by the tokenizer's chat template if it has one, with loss on answers only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

import numpy as np
import torch

from fl_lightning.data.answers import AnswerFinder
from fl_lightning.data.chat_template import has_answer_marks, render, to_messages
from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.records import Record, Turn
from fl_lightning.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One tokenized record.

    Attributes:
        ids: token ids, int64, shape (length,).
        supervised: whether the loss is computed on predicting this token, bool, shape (length,); False for the first.
    """

    ids: torch.Tensor
    supervised: torch.Tensor

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        """Number of supervised tokens."""
        return int(np.count_nonzero(self.supervised.numpy()))


class Examples(Sequence[Example]):
    """Tokenized records in two flat tensors, five bytes per token; there is no overhead per record.

    Args:
        ids: token ids of each record.
        supervised: for each record, a list as long as its ids.
    """

    def __init__(self, ids: Sequence[Sequence[int]], supervised: Sequence[Sequence[bool]]) -> None:
        self._ids = torch.tensor([i for record in ids for i in record], dtype=torch.int32)
        self._supervised = torch.tensor([mark for record in supervised for mark in record], dtype=torch.bool)
        self._ends = list(accumulate(len(record) for record in ids))

    @classmethod
    def of_flat(cls, ids: torch.Tensor, supervised: torch.Tensor, lengths: Sequence[int]) -> Examples:
        """Records that follow one another in two tensors, int32 and bool, of shape (sum of the lengths,)."""
        examples = cls([], [])
        examples._ids, examples._supervised, examples._ends = ids, supervised, list(accumulate(lengths))
        return examples

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        span = slice(self._ends[number - 1] if number else 0, self._ends[number])
        return Example(self._ids[span].long(), self._supervised[span])

    def __len__(self) -> int:
        """Number of records."""
        return len(self._ends)


class RecordEncoder:
    """Turns records into token ids and marks what is supervised.

    The text of a conversation is that of the tokenizer's chat template, tokenized in one piece, so the ids equal those
    of `apply_chat_template`. Supervised are the answers and their end tokens: by the marks of the template
    (``{% generation %}``) if it has them, else as `fl_lightning.data.answers` finds them. An end token is appended if
    the template writes none behind the last answer. What follows the last supervised token is left out.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ends = tokenizer, find_end_tokens(tokenizer)
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        if self._has_template:
            self._answers = AnswerFinder(tokenizer, self._ends)

    def __call__(self, record: Record, location: str) -> tuple[list[int], list[bool]]:
        """Token ids of a record, and whether each is supervised.

        Raises:
            InputError: if the chat template cannot render the record, or an answer cannot be located, as with a
                tokenizer that does not say which characters its tokens stand for.
        """
        if self._has_template and record[0].role != "text":
            return self._encode_conversation(record, location)
        check_no_tools(record, location)
        ids: list[int] = []
        marks: list[bool] = []
        for text, supervised in _pieces(record, self._tokenizer):
            piece = _tokens(text, self._tokenizer, first=not ids)
            ids += piece
            marks += [supervised] * len(piece)
        return ids, marks

    def _encode_conversation(self, record: Record, location: str) -> tuple[list[int], list[bool]]:
        if not self._tokenizer.is_fast:
            raise InputError(
                f"{location}: expected a tokenizer with offsets, got {type(self._tokenizer).__name__}, in whose tokens "
                "an answer cannot be located; give a base with tokenizer.json as model.name_or_path"
            )
        last = max((i for i, turn in enumerate(record) if turn.supervised), default=-1)
        record = Record(record[: last + 1], record.tools)
        if not record:
            return [], []
        text = self._answers.text(record, location)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        if has_answer_marks(self._tokenizer, record.tools):
            marks = self._marks_of_template(record, ids, location)
        else:
            spans = self._answers.find(record, text, location)
            marks = [any(end > a and start < b for a, b in spans) for start, end in encoded["offset_mapping"]]
        stop = max((i + 1 for i, mark in enumerate(marks) if mark), default=0)
        ids, marks = ids[:stop], marks[:stop]
        if ids and self._ends and not self._is_ended(record, ids):
            ids, marks = [*ids, self._ends[0]], [*marks, True]
        return ids, marks

    def _marks_of_template(self, record: Record, ids: list[int], location: str) -> list[bool]:
        """Supervised tokens by ``{% generation %}``, each answer with the end token behind it."""
        messages = to_messages(record, self._tokenizer)
        encoded = self._tokenizer.apply_chat_template(
            messages, tools=record.tools or None, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        marks = [bool(mark) for mark in encoded["assistant_masks"]]
        if not any(marks):
            raise InputError(
                f"{location}: the chat template has {{% generation %}} and marks no answer with it; expected marks "
                "around every answer, or none at all, in a template of your own as data.chat_template"
            )
        starts = [i for i, mark in enumerate(marks) if mark and not (i and marks[i - 1])]
        answers = [turn for turn in record if turn.role == "assistant"]
        if not all(turn.weight for turn in answers) and len(starts) != len(answers):
            raise InputError(
                f"{location}: weight: the chat template marks {len(starts)} answers, expected {len(answers)}; leave "
                "weight out, or give a template that marks every answer as data.chat_template"
            )
        for number, start in enumerate(starts):
            stop = next((i for i in range(start, len(ids)) if not marks[i]), len(ids))
            end = max((i + 1 for i in range(start, stop) if ids[i] in self._ends), default=0)
            if end:  # text that the template marks behind the end token is not learned
                marks[end:stop] = [False] * (stop - end)
            elif stop < len(ids) and ids[stop] in self._ends:
                marks[stop], stop = True, stop + 1
            if number < len(answers) and not answers[number].weight:
                marks[start:stop] = [False] * (stop - start)
        return marks

    def _is_ended(self, record: Record, ids: Sequence[int]) -> bool:
        return ids[-1] in self._ends or bool(record[-1].tool_calls and ids[-1] in self._tokenizer.added_tokens_decoder)


def encode(records: Sequence[Record], tokenizer: Any, max_length: int, location: str = "records") -> Examples:
    """Tokenize records.

    Args:
        records: conversations, see `fl_lightning.data.records`.
        tokenizer: a transformers tokenizer.
        max_length: longer records are cut: the prompt's beginning first (at most half of `max_length` of it is kept),
            then the end of the response.
        location: of the records, for messages; a record's own location is preferred.

    Returns:
        One example per record, in order.

    Raises:
        InputError: if the chat template cannot render a record or a response comes out empty.
    """
    encoder = RecordEncoder(tokenizer)
    all_ids: list[list[int]] = []
    all_marks: list[list[bool]] = []
    cut = 0
    for index, record in enumerate(records):
        where = record.location or f"{location}: record {index}"
        ids, marks = encoder(record, where)
        if len(ids) > max_length:
            first = next((i for i, mark in enumerate(marks) if mark), 0)
            start = max(0, min(len(ids) - max_length, first - max_length // 2))
            ids, marks = ids[start : start + max_length], marks[start : start + max_length]
            cut += 1
        if marks:
            marks[0] = False  # no token before it predicts it
        if not any(marks):
            raise InputError(f"{where}: no response tokens after tokenization; give a longer response")
        all_ids.append(ids)
        all_marks.append(marks)
    if cut:
        log.info("%s: %d of %d records cut to %d tokens (data.max_length)", location, cut, len(records), max_length)
    return Examples(all_ids, all_marks)


def encode_prompt(turns: Sequence[Turn], tokenizer: Any, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Token ids of a conversation for the model to answer, as `apply_chat_template` gives them.

    Args:
        turns: all messages so far.
        tokenizer: a transformers tokenizer.
        tools: JSON schemas of functions that the model may call.

    Raises:
        InputError: if the chat template cannot render them or leaves one out, or the result is empty.
    """
    ids: list[int] = []
    if getattr(tokenizer, "chat_template", None):
        record = Record(turns, tools)
        AnswerFinder(tokenizer, ()).check_prompt(record, "messages")
        text = render(record, tokenizer, "messages", tools=tools, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        check_no_tools(Record(turns, tools), "messages")
        for text, _ in _pieces(turns, tokenizer):
            ids += _tokens(text, tokenizer, first=not ids)
    if not ids:
        raise InputError("messages: expected at least one word, got no tokens")
    return ids


def check_no_tools(record: Record, location: str) -> None:
    """Check that a conversation for a base without a chat template has no tools, which only a template can write.

    Raises:
        InputError: if it has some.
    """
    if record.tools or any(turn.tool_calls or turn.role == "tool" for turn in record):
        raise InputError(
            f"{location}: expected a conversation without tools, since the base model has no chat template; give one "
            "as data.chat_template, or remove the tools"
        )


def _pieces(record: Sequence[Turn], tokenizer: Any) -> list[tuple[str, bool]]:
    """Pieces of a text without a chat template, and whether each is supervised.

    They are tokenized one by one, as prompt and answer are in generation.
    """
    end = tokenizer.eos_token or ""
    if record[0].role == "text":
        return [(record[0].content + end, True)]
    return [(t.content + end, t.supervised) if t.role == "assistant" else (t.content + "\n\n", False) for t in record]


def _tokens(text: str, tokenizer: Any, *, first: bool) -> list[int]:
    """Token ids of a piece; the first begins with the tokenizer's beginning mark, if it has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not first:
        return ids
    marked: list[int] = tokenizer(text)["input_ids"]
    begin = next((i for i in range(len(marked) - len(ids) + 1) if marked[i : i + len(ids)] == ids), 0)
    return marked[:begin] + ids
