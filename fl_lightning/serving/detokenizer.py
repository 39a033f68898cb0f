"""Tokens to text as they arrive: whole characters only, and nothing that may become a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextStream:
    """Text of an answer in pieces; all pieces together are the text of all tokens.

    Args:
        tokenizer: a transformers tokenizer.
        stops: stop sequences, which are not part of the answer.

    Attributes:
        stopped: whether a stop sequence was found.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._start = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Add tokens; the text that is certain comes back.

        Args:
            tokens: new tokens.
            last: True if no more will follow; then nothing is held back.
        """
        if self.stopped:
            return ""
        self._tokens += tokens
        self._held += self._text(last)
        matches = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if matches:  # the first complete one, so that the result does not depend on how many tokens arrive at once
            self.stopped = True
            return self._held[: min(matches)[1]]
        keep = 0 if last else max((self._overlap(stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _text(self, last: bool) -> str:
        """New text. A token may be part of a character, and its text may depend on the tokens before it."""
        before = self._decode(self._tokens[self._start : self._read])
        both = self._decode(self._tokens[self._start :])
        if not last and (both.endswith("\ufffd") or len(both) <= len(before)):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return both[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _overlap(self, stop: str) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop sequence."""
        return next((n for n in range(min(len(stop), len(self._held)), 0, -1) if stop.startswith(self._held[-n:])), 0)
