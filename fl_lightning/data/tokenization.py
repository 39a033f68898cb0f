"""Records into token ids and labels: the tokenizer's chat template where it has one, loss on responses only."""

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
    """One tokenised record.

    Attributes:
        ids: token ids, int64, shape (length,).
        supervised: whether the loss is taken on predicting this token, bool, shape (length,). Never true for the first.
    """

    ids: torch.Tensor
    supervised: torch.Tensor

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


class Examples(Sequence[Example]):
    """Tokenised records in two flat tensors, five bytes a token: what many clients' records cost is their tokens alone.

    Args:
        ids: token ids of each record.
        supervised: as long as the ids of each record.
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
        where = slice(self._ends[number - 1] if number else 0, self._ends[number])
        return Example(self._ids[where].long(), self._supervised[where])

    def __len__(self) -> int:
        """Number of records."""
        return len(self._ends)


def encode(records: Sequence[Record], tokenizer: Any, max_length: int, where: str = "records") -> Examples:
    """Tokenise records; prompt and response are tokenised apart, as they are when the model is asked.

    Args:
        records: conversations, see `fl_lightning.data.records`.
        tokenizer: a transformers tokenizer.
        max_length: records with more tokens are cut: the prompt's beginning first (at most half of `max_length` of it
            is kept), then the end of the response.
        where: named in messages.

    Returns:
        One example a record, in order.

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
        for text, supervised in _pieces(record, tokenizer, f"{where}: record {index}"):
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
            marks[0] = False  # nothing comes before it, so nothing predicts it
        if not any(marks):
            raise InputError(f"{where}: record {index}: no response tokens after tokenisation; give a longer response")
        all_ids.append(ids)
        all_marks.append(marks)
    if cut:
        log.info("%s: %d of %d records cut to %d tokens (data.max_length)", where, cut, len(records), max_length)
    return Examples(all_ids, all_marks)


def encode_prompt(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """Token ids of a conversation that the model is to answer, cut into pieces as `encode` cuts a record.

    Args:
        turns: what was said so far.
        tokenizer: a transformers tokenizer.

    Raises:
        InputError: if the chat template cannot render them, or they come out empty.
    """
    templated = bool(getattr(tokenizer, "chat_template", None))
    if templated:
        prompt = _render(turns, tokenizer, "messages", add_generation_prompt=True)
        try:
            pieces = _pieces(turns, tokenizer, "messages")
        except InputError:  # the template rewrites earlier turns, so that there is nothing to cut along
            pieces = []
        done = "".join(text for text, _ in pieces)
        pieces = [*pieces, (prompt[len(done) :], False)] if prompt.startswith(done) else [(prompt, False)]
    else:
        pieces = _pieces(turns, tokenizer, "messages")
    ids: list[int] = []
    for text, _ in pieces:
        ids += tokenizer(text, add_special_tokens=not ids and not templated)["input_ids"]
    if not ids:
        raise InputError("messages: no tokens, wanted at least one word")
    return ids


def _pieces(record: Sequence[Turn], tokenizer: Any, where: str) -> list[tuple[str, bool]]:
    """The text of a record in consecutive pieces, each with whether it is supervised."""
    end = tokenizer.eos_token or ""
    if record[0].role == "text":
        return [(record[0].content + end, True)]
    if not getattr(tokenizer, "chat_template", None):
        return [(t.content + end, True) if t.supervised else (t.content + "\n\n", False) for t in record]
    pieces, done = [], ""
    for number, turn in enumerate(record):
        if not turn.supervised:
            continue
        prompt = _render(record[:number], tokenizer, where, add_generation_prompt=True)
        answered = _render(record[: number + 1], tokenizer, where, add_generation_prompt=False)
        if not answered.startswith(prompt) or not prompt.startswith(done):
            raise InputError(f"{where}: the tokenizer's chat template rewrites earlier turns; wanted one that appends")
        response = answered[len(prompt) :]
        if end and end in response:  # what a template puts after the end mark is not the model's to learn
            response = response[: response.rindex(end) + len(end)]
        pieces += [(prompt[len(done) :], False), (response, True)]
        done = prompt + response
    return pieces


def _render(turns: Sequence[Turn], tokenizer: Any, where: str, *, add_generation_prompt: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # jinja raises whatever the template's author chose
        raise InputError(
            f"{where}: the tokenizer's chat template refuses it ({error}); wanted turns it takes"
        ) from error
