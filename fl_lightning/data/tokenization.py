"""Records as token ids: by the tokenizer's chat template if it has one, with loss on responses only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

import torch

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


def encode(records: Sequence[Record], tokenizer: Any, max_length: int, location: str = "records") -> Examples:
    """Tokenize records; prompt and response are tokenized separately, as they are in generation.

    Args:
        records: conversations, see `fl_lightning.data.records`.
        tokenizer: a transformers tokenizer.
        max_length: longer records are cut: the prompt's beginning first (at most half of `max_length` of it is kept),
            then the end of the response.
        location: of the records, for messages.

    Returns:
        One example per record, in order.

    Raises:
        InputError: if the chat template cannot render a record or a response comes out empty.
    """
    all_ids: list[list[int]] = []
    all_marks: list[list[bool]] = []
    cut = 0
    for index, record in enumerate(records):
        ids: list[int] = []
        marks: list[bool] = []
        templated = bool(getattr(tokenizer, "chat_template", None)) and record[0].role != "text"
        for text, supervised in _pieces(record, tokenizer, f"{location}: record {index}"):
            # A chat template writes the beginning mark itself.
            piece = tokenizer(text, add_special_tokens=not ids and not templated)["input_ids"]
            ids += piece
            marks += [supervised] * len(piece)
        if len(ids) > max_length:
            first = next((i for i, mark in enumerate(marks) if mark), 0)
            start = max(0, min(len(ids) - max_length, first - max_length // 2))
            ids, marks = ids[start : start + max_length], marks[start : start + max_length]
            cut += 1
        if marks:
            marks[0] = False  # no token before it predicts it
        if not any(marks):
            raise InputError(
                f"{location}: record {index}: no response tokens after tokenization; give a longer response"
            )
        all_ids.append(ids)
        all_marks.append(marks)
    if cut:
        log.info("%s: %d of %d records cut to %d tokens (data.max_length)", location, cut, len(records), max_length)
    return Examples(all_ids, all_marks)


def encode_prompt(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """Token ids of a conversation for the model to answer, tokenized in the same pieces as by `encode`.

    Args:
        turns: all messages so far.
        tokenizer: a transformers tokenizer.

    Raises:
        InputError: if the chat template cannot render them, or the result is empty.
    """
    templated = bool(getattr(tokenizer, "chat_template", None))
    if templated:
        prompt = _render(turns, tokenizer, "messages", add_generation_prompt=True)
        try:
            pieces = _pieces(turns, tokenizer, "messages")
        except InputError:  # the template rewrites earlier turns, so there are no common pieces
            pieces = []
        done = "".join(text for text, _ in pieces)
        pieces = [*pieces, (prompt[len(done) :], False)] if prompt.startswith(done) else [(prompt, False)]
    else:
        pieces = _pieces(turns, tokenizer, "messages")
    ids: list[int] = []
    for text, _ in pieces:
        ids += tokenizer(text, add_special_tokens=not ids and not templated)["input_ids"]
    if not ids:
        raise InputError("messages: expected at least one word, got no tokens")
    return ids


def _pieces(record: Sequence[Turn], tokenizer: Any, location: str) -> list[tuple[str, bool]]:
    """Consecutive pieces of a record's text, and whether each is supervised."""
    end = tokenizer.eos_token or ""
    if record[0].role == "text":
        return [(record[0].content + end, True)]
    if not getattr(tokenizer, "chat_template", None):
        return [(t.content + end, True) if t.supervised else (t.content + "\n\n", False) for t in record]
    pieces, done = [], ""
    for number, turn in enumerate(record):
        if not turn.supervised:
            continue
        prompt = _render(record[:number], tokenizer, location, add_generation_prompt=True)
        answered = _render(record[: number + 1], tokenizer, location, add_generation_prompt=False)
        if not answered.startswith(prompt) or not prompt.startswith(done):
            raise InputError(
                f"{location}: the tokenizer's chat template rewrites earlier turns; expected one that only appends"
            )
        response = answered[len(prompt) :]
        if end and end in response:  # text that a template puts after the end mark is not learned
            response = response[: response.rindex(end) + len(end)]
        pieces += [(prompt[len(done) :], False), (response, True)]
        done = prompt + response
    return pieces


def _render(turns: Sequence[Turn], tokenizer: Any, location: str, *, add_generation_prompt: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # a template can raise anything
        raise InputError(
            f"{location}: the tokenizer's chat template refuses these turns ({error}); expected turns that it supports"
        ) from error
