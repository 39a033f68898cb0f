"""Messages between the coordinator and its sites: numbered, each to the owner of one key."""

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

MessageKind: TypeAlias = Literal["query", "train", "evaluate"]


@dataclass(frozen=True)
class Reply:
    """The reply to a message, or why there will be none.

    Attributes:
        number: of the message.
        body: None if there will be no reply.
        reason: why there will be none.
    """

    number: int
    body: bytes | None = None
    reason: str = ""


class MessageTransport(Protocol):
    """Carries messages to sites and replies back."""

    def online(self) -> Mapping[str, str]:
        """{client_id: time of connection} of the connected sites; another time means that the site was away."""
        ...

    def send(self, client_id: str, kind: MessageKind, body: bytes, ttl: float) -> int:
        """Send a message that expires after `ttl` seconds, and return its number."""
        ...

    def receive(self, timeout: float) -> Reply | None:
        """The next reply; None if there is none within `timeout` seconds.

        Raises:
            RunError: if no reply can come any more.
        """
        ...


class FlowerTransport:
    """Messages through the relay that Flower runs, see `fl_lightning.network.flower.server_app`.

    Args:
        connection: to the relay.
        nodes: {client_id: Flower's id of the node that has this client's key}. The sender of a reply is known from this
            alone; what a site says about itself does not count.
        check: raises `RunError` when a process that the relay needs has ended.
    """

    def __init__(
        self, connection: Connection, nodes: Mapping[str, int], check: Callable[[], None] = lambda: None
    ) -> None:
        self._connection, self._nodes, self._check = connection, dict(nodes), check
        self._owners = {str(node): client_id for client_id, node in nodes.items()}
        self._online: dict[str, str] = {}
        self._number = 0
        self._inbox: queue.Queue[Reply | None] = queue.Queue()
        # The relay must never wait for this process, which may be waiting for the relay to take a message.
        self._receiver = threading.Thread(target=self._receive_frames, name="relay-receiver", daemon=True)
        self._receiver.start()

    def online(self) -> Mapping[str, str]:
        """{client_id: time of connection} of the connected sites."""
        return dict(self._online)

    def send(self, client_id: str, kind: MessageKind, body: bytes, ttl: float) -> int:
        """Hand a message to the relay, and return its number."""
        self._number += 1
        try:
            header = {"send": self._number, "to": self._nodes[client_id], "kind": kind, "ttl": ttl}
            self._connection.send_bytes(pack(header, body))
        except OSError as error:
            raise _relay_ended() from error
        return self._number

    def receive(self, timeout: float) -> Reply | None:
        """The next reply; None if there is none within `timeout` seconds."""
        try:
            reply = self._inbox.get(timeout=timeout)
        except queue.Empty:
            self._check()
            return None
        if reply is None:
            raise _relay_ended()
        return reply

    def close(self) -> None:
        """Close the connection, which ends the relay's run."""
        # If it were closed while the thread reads, its descriptor could be reused by another file and the thread would
        # read from that. So it is shut down first, which ends the thread.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
        self._receiver.join(5.0)
        with contextlib.suppress(OSError):
            self._connection.close()

    def _receive_frames(self) -> None:
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


def _relay_ended() -> RunError:
    return RunError("Flower's relay has ended, and no message reaches the sites any more")
