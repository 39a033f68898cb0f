"""Messages between the coordinator and its sites, whatever carries them: numbered, and each to the owner of one key."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal, Protocol, TypeAlias

from fl_lightning.errors import RunError
from fl_lightning.network.frames import pack, unpack

Kind: TypeAlias = Literal["query", "train", "evaluate"]


@dataclass(frozen=True)
class Reply:
    """What came back for a message.

    Attributes:
        number: of the message.
        body: the answer; None where there will be none.
        reason: why there will be none.
    """

    number: int
    body: bytes | None = None
    reason: str = ""


class MessageTransport(Protocol):
    """Carries messages to sites and answers back."""

    def online(self) -> Mapping[str, str]:
        """{client_id: since when} of the sites that are connected; another time means that it was away in between."""
        ...

    def send(self, client_id: str, kind: Kind, body: bytes, ttl: float) -> int:
        """Send a message that is of no use after `ttl` seconds; its number comes back."""
        ...

    def receive(self, timeout: float) -> Reply | None:
        """The next answer; None if there is none within so many seconds.

        Raises:
            RunError: if nothing can come any more.
        """
        ...


class FlowerTransport:
    """Messages by way of the relay that Flower runs, see `fl_lightning.network.flower.server_app`.

    Args:
        connection: to the relay.
        nodes: {client_id: the id of the node that has this client's key}. Whose a message is, is known from this and
            from nothing that a site says.
        check: raises `RunError` when what the relay hangs on has gone.
    """

    def __init__(
        self, connection: Connection, nodes: Mapping[str, int], check: Callable[[], None] = lambda: None
    ) -> None:
        self._connection, self._nodes, self._check = connection, dict(nodes), check
        self._owners = {str(node): client_id for client_id, node in nodes.items()}
        self._online: dict[str, str] = {}
        self._number = 0
        self._inbox: queue.Queue[Reply | None] = queue.Queue()
        # The relay must never wait for this process, which may be waiting for it to take a message.
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def online(self) -> Mapping[str, str]:
        """{client_id: since when} of the sites that are connected."""
        return dict(self._online)

    def send(self, client_id: str, kind: Kind, body: bytes, ttl: float) -> int:
        """Hand a message to the relay."""
        self._number += 1
        try:
            header = {"send": self._number, "to": self._nodes[client_id], "kind": kind, "ttl": ttl}
            self._connection.send_bytes(pack(header, body))
        except OSError as error:
            raise _gone() from error
        return self._number

    def receive(self, timeout: float) -> Reply | None:
        """The next answer; None if there is none in time."""
        try:
            answer = self._inbox.get(timeout=timeout)
        except queue.Empty:
            self._check()
            return None
        if answer is None:
            raise _gone()
        return answer

    def close(self) -> None:
        """Hang up; the relay's run ends with that."""
        # Closed under a thread that reads it, its number could become another file's, of which the thread would read.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as both:
            both.shutdown(socket.SHUT_RDWR)
        self._ear.join(5.0)
        with contextlib.suppress(OSError):
            self._connection.close()

    def _listen(self) -> None:
        while True:
            try:
                header, body = unpack(self._connection.recv_bytes())
            except (EOFError, OSError, ValueError):
                self._inbox.put(None)
                return
            if "nodes" in header:
                nodes = header["nodes"].items()
                self._online = {self._owners[node]: since for node, since in nodes if node in self._owners}
            elif "reply" in header:
                self._inbox.put(Reply(header["reply"], body))
            else:
                self._inbox.put(Reply(header["lost"], None, str(header.get("reason", ""))))


def _gone() -> RunError:
    return RunError("Flower's run of the relay has ended, and nothing reaches the sites any more")
