"""Takes in requests on the site's socket in a thread, so that they arrive while the site is training."""

from __future__ import annotations

import logging
import queue
import threading
from multiprocessing.connection import Connection
from typing import TypeAlias

from fl_lightning.network.flower.local_socket import SocketFolder

log = logging.getLogger(__name__)

Request: TypeAlias = tuple[Connection, bytes]
"""(where the reply goes, message)."""


def receive_requests(folder: SocketFolder) -> queue.Queue[Request]:
    """Start to take in requests; the thread ends when the folder is closed.

    Returns:
        A queue to which requests are added. Whoever takes one closes its connection.
    """
    requests: queue.Queue[Request] = queue.Queue()

    def listen() -> None:
        while (connection := folder.accept()) is not None:
            try:
                requests.put((connection, connection.recv_bytes()))
            except (EOFError, OSError) as error:
                log.warning("a request broke off (%s); still listening", type(error).__name__)
                connection.close()

    threading.Thread(target=listen, name="site-listener", daemon=True).start()
    return requests
