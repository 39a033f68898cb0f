"""A unix socket that only this user's processes can reach, and only those that were told its key.

`SocketFolder` makes a folder of mode 0700 with the key in a file of mode 0600; a child process is told the folder by
its environment, since arguments show in every list of processes. What travels are bytes: nothing is unpickled.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fl_lightning.storage.files import write_secret

VARIABLE = "FL_LIGHTNING_SOCKET"
"""Names the folder in a child's environment."""


class SocketFolder:
    """A folder with a socket, its key, and whatever else the run's child processes need; removed by `close`.

    Example:
        >>> with SocketFolder() as folder:
        ...     listener = folder.listen()
        ...     folder.path.stat().st_mode & 0o777 == 0o700
        True
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fl-"))  # short: a socket's path may have 107 characters
        self._listener: Listener | None = None
        write_secret(self.path / "key", secrets.token_bytes(32))

    def listen(self) -> Listener:
        """The listening end."""
        key = (self.path / "key").read_bytes()
        self._listener = Listener(str(self.path / "socket"), family="AF_UNIX", backlog=64, authkey=key)
        return self._listener

    def close(self) -> None:
        """Stop listening and remove the folder."""
        if self._listener is not None:
            self._listener.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> SocketFolder:
        """The folder itself."""
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(folder: Path | None = None) -> Connection:
    """The connecting end, to the folder or to the one that the environment names.

    Raises:
        RuntimeError: if the environment names none.
    """
    if folder is None:
        if VARIABLE not in os.environ:
            raise RuntimeError(
                f"{VARIABLE} is not set: this process was not started by 'fl-lightning server' or 'client'"
            )
        folder = Path(os.environ[VARIABLE])
    return Client(str(folder / "socket"), family="AF_UNIX", authkey=(folder / "key").read_bytes())
