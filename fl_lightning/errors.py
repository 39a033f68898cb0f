"""Errors that a person can mend: they reach the terminal as one line, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad config, data or arguments (exit code 2); the message says where, what was got, what was wanted, the fix."""


class RunError(RuntimeError):
    """The run itself could not go on (exit code 1); the last good state is on disk."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: ``"; did you mean 'rounds'?"``, or ``""`` where nothing is near.

    Example:
        >>> nearest("ronds", ["rounds", "share"])
        "; did you mean 'rounds'?"
    """
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""
