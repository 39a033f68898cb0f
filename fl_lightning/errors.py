"""Errors that a user can fix; the terminal shows them as one line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad config, data or arguments (exit code 2). The message says where, expected, got, and the fix."""


class RunError(RuntimeError):
    """The run could not continue (exit code 1); the last good state is on disk."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelled word: ``"; did you mean 'rounds'?"``, or ``""`` if no known word is similar.

    Example:
        >>> nearest("ronds", ["rounds", "share"])
        "; did you mean 'rounds'?"
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""
