"""Values out of files that may have been written by another version, or by somebody else: what fits, or nothing.

None of these functions raises; what is not of the wanted form is passed over.
"""

from __future__ import annotations

import math
import re
from typing import Any

LONGEST = 500
"""Characters of a text that a page shows of a name or a reason."""


def number(value: Any) -> float | None:
    """A finite number, also out of a text; None for anything else.

    Example:
        >>> number("1.5"), number(True), number(float("nan")), number([1])
        (1.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def mapping(value: Any) -> dict[str, Any]:
    """A mapping with its keys as text; an empty one for anything else.

    Example:
        >>> mapping({1: "a"}), mapping(["a"])
        ({'1': 'a'}, {})
    """
    return {text(key): own for key, own in value.items()} if isinstance(value, dict) else {}


def numbers(value: Any) -> dict[str, float]:
    """{name: number} of those entries of a mapping that are numbers.

    Example:
        >>> numbers({"loss": 1, "name": "hr"})
        {'loss': 1.0}
    """
    found = {key: number(own) for key, own in mapping(value).items()}
    return {key: own for key, own in found.items() if own is not None}


def by_round(value: Any) -> dict[int, Any]:
    """{round: value} of those entries of a mapping whose keys are whole numbers, in the order of rounds.

    Example:
        >>> by_round({"10": "b", "2": "a", "last": "c"})
        {2: 'a', 10: 'b'}
    """
    found = {int(k): own for k, own in mapping(value).items() if re.fullmatch(r"[0-9]{1,9}", k)}
    return dict(sorted(found.items()))


def labels(value: Any) -> dict[str, int]:
    """{name: cluster} of those entries of a mapping that are whole numbers.

    Example:
        >>> labels({"hr": 1, "finance": 0.5})
        {'hr': 1}
    """
    return {name: int(own) for name, own in numbers(value).items() if own == int(own)}


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
        found = [own for own in map(number, row) if own is not None] if isinstance(row, list) else []
        if len(found) != size:
            return None
        rows.append(found)
    return rows


def text(value: Any) -> str:
    r"""At most `LONGEST` characters of anything, control characters shown as what they are called.

    Example:
        >>> text("hr"), text("a" + chr(7)), text(None)
        ('hr', 'a\\x07', 'None')
    """
    whole = value if isinstance(value, str) else str(value)
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in whole[: LONGEST + 1])
    return shown if len(whole) <= LONGEST else f"{shown[:LONGEST]}…"
