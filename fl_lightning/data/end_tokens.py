"""Which tokens end an answer. Training teaches the first of them; any of them stops a generated answer."""

from __future__ import annotations

import re
from typing import Any

from fl_lightning.data.chat_template import render
from fl_lightning.data.records import Turn
from fl_lightning.errors import InputError

STAND_IN = "Zq7StandInQ{}z"
"""Text that a template passes through, and that appears nowhere else."""


def find_end_tokens(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """Ids of the tokens that end an answer, without duplicates.

    They are, in this order: the special token that the chat template writes behind an answer (or, if it writes none,
    the one with which it begins the next user turn), the tokenizer's end token, and those of the generation config.

    Args:
        tokenizer: a transformers tokenizer.
        generation_config: of the base model; None leaves it out.

    Returns:
        The ids; training appends the first one to an answer behind which the template writes none. Empty if the base
        has no such token.

    Example:
        >>> from fl_lightning.config import ModelConfig
        >>> from fl_lightning.modeling.base_model import load_tokenizer
        >>> find_end_tokens(load_tokenizer(ModelConfig()))
        (2,)
    """
    configured = getattr(generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list | tuple) else [configured]
    candidates = [_end_in_template(tokenizer), tokenizer.eos_token_id, *configured]
    return tuple(dict.fromkeys(int(token) for token in candidates if token is not None and token >= 0))


def _end_in_template(tokenizer: Any) -> int | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    user, answer, next_user = (STAND_IN.format(number) for number in range(3))
    turns = [Turn("user", user), Turn("assistant", answer), Turn("user", next_user)]
    not_ends = (tokenizer.bos_token, tokenizer.unk_token)
    for count in (2, 3):
        try:
            text = render(turns[:count], tokenizer, "chat template")
        except InputError:
            continue
        if answer not in text:
            continue
        mark = re.match(special_pattern(tokenizer), text.rpartition(answer)[2].lstrip())
        if mark and (count == 2 or mark[0] not in not_ends):
            return int(tokenizer.convert_tokens_to_ids(mark[0]))
    return None


def special_pattern(tokenizer: Any) -> str:
    """A regular expression for the tokenizer's special and added tokens, the longest first."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token.strip()) or r"(?!)"
