"""Keys of a record that are not read: an error if they could change what is learned, else they are counted."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

MEANINGFUL_WORDS = {
    "system", "sys", "developer", "context", "document", "passage", "history", "tool", "function",
    "weight", "loss", "mask", "masked", "unmasked", "train", "training", "trainable", "trained", "skip",
    "label", "reward", "kto", "preference", "preferred", "dispreferred", "chosen",
    "ignore", "rejected", "reject", "negative", "correct", "incorrect", "wrong", "refusal", "advantage",
    "accepted", "approved", "desirable", "undesirable", "valid", "invalid",
    "image", "video", "audio", "prefix", "suffix", "prefill", "think", "thinking", "thought", "reasoning", "rationale",
}  # fmt: skip
"""A key with one of these words, as in ``chosen_score``, may say what to learn, what not, or what the model sees. Names
with ``id``, as in ``document_id``, do not."""

GRADE_KEYS = {"score", "scores", "rating", "ratings", "rank", "grade"}
"""Keys that may say how good an answer is; ``language_score`` and the like do not."""

CONTENT_KEYS = {
    "messages", "conversations", "conversation", "dialog", "dialogue", "turns", "instruction", "input", "output",
    "prompt", "completion", "text", "response", "responses", "answer", "answers", "question", "query", "target",
    "content", "value",
}  # fmt: skip
"""Keys that hold text in some form of a record."""


def is_empty(value: object) -> bool:
    """Whether a JSON value counts as absent; 0 and false do not, since they say something."""
    return value is None or value in ("", [], {})


def check_one_of(value: Mapping[str, Any], first: str, second: str) -> None:
    """Check that two keys for the same thing do not say different things.

    Raises:
        ValueError: if both have a value, and not the same.
    """
    if not is_empty(value.get(first)) and not is_empty(value.get(second)) and value[first] != value[second]:
        raise ValueError(f"{first!r} and {second!r}: expected one of them, got both; remove one")


def check_unread_keys(value: Mapping[str, Any], read: Collection[str], contents: Collection[str]) -> list[str]:
    """The keys that are not read and are harmless; keys without a value are left out.

    Args:
        value: a record, or a message of one.
        read: the keys that are read.
        contents: texts of the record. A key such as ``text`` may hold one of them again, or all of them.

    Raises:
        ValueError: naming a key that could change what is learned.

    Example:
        >>> check_unread_keys({"prompt": "1 + 1", "completion": "2", "id": 7}, ["prompt", "completion"], ["1 + 1", "2"])
        ['id']
    """
    unread = []
    for key, item in value.items():
        if key in read or is_empty(item):
            continue
        words = _words(key)
        told = sorted(words & MEANINGFUL_WORDS) or sorted({key.lower()} & GRADE_KEYS)
        if told and "id" not in words:
            raise ValueError(
                f"key {_shown(key)}: expected no key that says {told[0]!r} here, since it could change what is "
                "learned; remove or rename it"
            )
        if key.lower() in CONTENT_KEYS and not _repeats(item, contents):
            raise ValueError(
                f"key {_shown(key)}: expected one form of a record, got text beside {', '.join(sorted(read))[:80]}; "
                "remove one of them"
            )
        unread.append(key)
    return unread


def _words(key: str) -> set[str]:
    """The words of a snake_case or camelCase key, in lower case and in the singular."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)}
    return words | {word.removesuffix("s") for word in words}


def _repeats(item: object, contents: Collection[str]) -> bool:
    return isinstance(item, str) and any(item.strip() in text or text in item for text in contents if text)


def _shown(key: str) -> str:
    return ascii(key)[:60]


def describe_unread_keys(counts: Mapping[str, int]) -> str:
    """One line that names unread keys and the number of their records, or an empty text.

    Example:
        >>> describe_unread_keys({"id": 12, "source": 1})
        "keys of records that are not read: 'id' (12 records), 'source' (1 record)"
    """
    names = [f"{_shown(key)} ({count:,} record{'s' if count > 1 else ''})" for key, count in sorted(counts.items())]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"keys of records that are not read: {', '.join(names[:10])}{more}" if names else ""
