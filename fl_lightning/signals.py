"""Ctrl-C and SIGTERM as a clean stop: the handler notes the request, and the run stops at the next safe point.

An exception that a signal handler raises at an arbitrary point may be swallowed by code called from C++ or from a
destructor. So during a run the handler only notes the request, and the trainer checks for it after every optimizer step
and around every hook. Outside a run the first signal stops at once. A second signal always stops at once, as if the
process were killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


class Stopped(BaseException):
    """A signal asked the process to stop.

    Attributes:
        number: the signal.
        run_folder: the folder of the stopped run, which can be resumed; None if there is none yet.
        note: what a command that is not a run had finished before.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number
        self.run_folder: Path | None = None
        self.note = ""


_requested = False
_pending: int | None = None
_deferring = False


def check() -> None:
    """Stop here if a signal has requested it.

    Raises:
        Stopped: with the signal's number.
    """
    global _pending
    if _pending is not None:
        number, _pending = _pending, None
        raise Stopped(number)


@contextlib.contextmanager
def at_safe_points() -> Iterator[None]:
    """While this block runs, the first signal waits for the next `check`."""
    global _deferring, _pending
    _deferring = True
    try:
        yield
    finally:
        _deferring, _pending = False, None


def install() -> None:
    """Handle SIGINT and SIGTERM this way; the next signal counts as the first."""
    global _requested, _pending
    _requested, _pending = False, None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _requested, _pending
    if _requested:
        with contextlib.suppress(OSError):
            os.write(2, b"stopped at once\n")
        os._exit(128 + number)
    _requested = True
    if _deferring:
        _pending = number
        return
    raise Stopped(number)
