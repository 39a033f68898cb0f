"""Writes files during training: one thread, in the order of submission, with a bounded queue."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_lightning.storage.files import write_text

MAX_QUEUED = 16
"""Writes that may wait; with more, `submit` waits too, so that memory stays bounded."""


class BackgroundWriter:
    """Runs writes in a separate thread, one after another.

    After a write has failed nothing more is written, since later files may refer to it. The error is raised by the next
    `submit`, `flush` or `close`; `close` clears it. Submitted values must not change afterwards.

    Attributes:
        busy: seconds spent on writes so far.
        waited: seconds that callers of `flush` have waited so far.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "figures.json"
        >>> writer = BackgroundWriter()
        >>> writer.json(path, {"loss": 1.5})
        >>> writer.close()
        >>> json.loads(path.read_text())
        {'loss': 1.5}
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_QUEUED)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.busy, self.waited = 0.0, 0.0

    def submit(self, write: Callable[[], object]) -> None:
        """Queue a write; waits if the queue is full.

        Raises:
            Exception: the error of an earlier write.
        """
        self._check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="writer")
            self._thread.start()
        self._queue.put(write)

    def json(self, path: Path, value: Any) -> None:
        """Queue an atomic write of a JSON file with the value as it is now."""
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        self.submit(lambda: write_text(path, text))

    def flush(self) -> None:
        """Wait until everything queued so far is written.

        Raises:
            Exception: the error of a write.
        """
        start = time.perf_counter()
        self._queue.join()
        self.waited += time.perf_counter() - start
        self._check()

    def close(self) -> None:
        """Wait for all writes and end the thread; a later `submit` starts another.

        Raises:
            Exception: the error of a write.
        """
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            start = time.perf_counter()
            try:
                if self._error is None:
                    write()
            except BaseException as error:
                self._error = error
            finally:
                self.busy += time.perf_counter() - start
                self._queue.task_done()
        self._queue.task_done()
