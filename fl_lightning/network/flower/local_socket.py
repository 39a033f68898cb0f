"""A unix socket for the processes of one user, and of these only for those that have its key.

`SocketFolder` makes a folder of mode 0700 with the key in a file of mode 0600. A child process gets the folder's path
in its environment, because command lines are visible to all users. Messages are bytes: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fl_lightning.storage.files import write_secret

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "FL_LIGHTNING_SOCKET"
"""Environment variable of a child process: path of the folder."""


class SocketFolder:
    """A folder with a listening socket and its key; other files of a run's child processes go there too.

    `close` removes it. Also a context manager.

    Example:
        >>> with SocketFolder() as folder:
        ...     folder.path.stat().st_mode & 0o777 == 0o700
        True
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fl-"))  # short: the path of a socket has at most 107 characters
        self._closed = threading.Event()
        key = secrets.token_bytes(32)
        write_secret(self.path / "key", key)
        self._listener = Listener(str(self.path / "socket"), family="AF_UNIX", backlog=64, authkey=key)

    def accept(self) -> Connection | None:
        """Wait for the next process that has the key.

        One that has another key, or breaks off in the handshake, is logged and waited for no longer.

        Returns:
            The connection; None once this folder is closed.
        """
        while not self._closed.is_set():
            try:
                return self._listener.accept()
            except (AuthenticationError, EOFError, OSError) as error:
                if self._closed.is_set():
                    break
                log.warning("a process failed to connect (%s: %s); still listening", type(error).__name__, error)
                time.sleep(0.05)  # such as out of file descriptors, which fails at once and lasts
        return None

    def close(self) -> None:
        """Stop listening, end a waiting `accept`, and remove the folder."""
        self._closed.set()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(1.0)
            peer.connect(str(self.path / "socket"))  # wakes a thread in `accept`, which closing the socket does not
        self._listener.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> SocketFolder:
        """The folder itself."""
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(folder: Path | None = None) -> Connection:
    """Connect to the socket of a folder.

    Args:
        folder: None takes the one named by the environment.

    Raises:
        RuntimeError: if the environment names none.
    """
    if folder is None:
        if FOLDER_VARIABLE not in os.environ:
            raise RuntimeError(
                f"{FOLDER_VARIABLE} is not set: this process was not started by 'fl-lightning server' or 'client'"
            )
        folder = Path(os.environ[FOLDER_VARIABLE])
    return Client(str(folder / "socket"), family="AF_UNIX", authkey=(folder / "key").read_bytes())
