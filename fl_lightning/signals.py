"""Stopping on a signal without tearing anything: asked for by the handler, done at the next safe point.

An exception raised by a signal handler wherever the process happens to be may be swallowed by code that was called from
C++ or from a destructor. So the handler only notes the request while a run is under way, and the trainer looks after
every optimizer step and around every hook. Outside a run a first signal stops at once; a second one always does, and
leaves what a killed process leaves.
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
        run_folder: of the run that it stopped and that can be resumed; None where there is none yet.
        note: what was done before, where it is no run that was stopped.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number
        self.run_folder: Path | None = None
        self.note = ""


_asked = False
_pending: int | None = None
_deferring = False


def check() -> None:
    """Stop here if it was asked for.

    Raises:
        Stopped: with the signal's number.
    """
    global _pending
    if _pending is not None:
        number, _pending = _pending, None
        raise Stopped(number)


@contextlib.contextmanager
def at_safe_points() -> Iterator[None]:
    """While this block runs, a first signal waits for `check`."""
    global _deferring, _pending
    _deferring = True
    try:
        yield
    finally:
        _deferring, _pending = False, None


def install() -> None:
    """Handle SIGINT and SIGTERM this way, from their first one on."""
    global _asked, _pending
    _asked, _pending = False, None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked, _pending
    if _asked:
        with contextlib.suppress(OSError):
            os.write(2, b"stopped at once\n")
        os._exit(128 + number)
    _asked = True
    if _deferring:
        _pending = number
        return
    raise Stopped(number)
