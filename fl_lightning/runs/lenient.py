"""Lenient parsing of values from files that may be damaged, or written by another version or somebody else.

None of these functions raises: a value of another form is ignored.
"""

from __future__ import annotations

import math
import re
from typing import Any

MAX_LENGTH = 500
"""Characters of a name or a reason that a report shows."""


def number(value: Any) -> float | None:
    """A finite number, or a text that holds one; None for anything else.

    Example:
        >>> number("1.5"), number(True), number(float("nan")), number([1])
        (1.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def mapping(value: Any) -> dict[str, Any]:
    """A mapping with its keys as text; an empty one for anything else.

    Example:
        >>> mapping({1: "a"}), mapping(["a"])
        ({'1': 'a'}, {})
    """
    return {text(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def numbers(value: Any) -> dict[str, float]:
    """{name: number} of the entries of a mapping that are numbers.

    Example:
        >>> numbers({"loss": 1, "name": "hr"})
        {'loss': 1.0}
    """
    values = {key: number(item) for key, item in mapping(value).items()}
    return {key: item for key, item in values.items() if item is not None}


def by_round(value: Any) -> dict[int, Any]:
    """{round: value} of the entries of a mapping whose keys are whole numbers, in the order of rounds.

    Example:
        >>> by_round({"10": "b", "2": "a", "last": "c"})
        {2: 'a', 10: 'b'}
    """
    rounds = {int(key): item for key, item in mapping(value).items() if re.fullmatch(r"[0-9]{1,9}", key)}
    return dict(sorted(rounds.items()))


def labels(value: Any) -> dict[str, int]:
    """{name: cluster} of the entries of a mapping that are whole numbers.

    Example:
        >>> labels({"hr": 1, "finance": 0.5})
        {'hr': 1}
    """
    return {name: int(item) for name, item in numbers(value).items() if item == int(item)}


def matrix(value: Any, size: int) -> list[list[float]] | None:
    """A square matrix of numbers; None for anything else.

    Example:
        >>> matrix([[1, 0.5], [0.5, 1]], 2), matrix([[1]], 2)
        ([[1.0, 0.5], [0.5, 1.0]], None)
    """
    if not isinstance(value, list) or len(value) != size:
        return None
    rows: list[list[float]] = []
    for row in value:
        values = [item for item in map(number, row) if item is not None] if isinstance(row, list) else []
        if len(values) != size:
            return None
        rows.append(values)
    return rows


def text(value: Any) -> str:
    r"""At most `MAX_LENGTH` characters of anything, with control characters escaped.

    Example:
        >>> text("hr"), text("a" + chr(7)), text(None)
        ('hr', 'a\\x07', 'None')
    """
    full = value if isinstance(value, str) else str(value)
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in full[: MAX_LENGTH + 1])
    return shown if len(full) <= MAX_LENGTH else f"{shown[:MAX_LENGTH]}…"
