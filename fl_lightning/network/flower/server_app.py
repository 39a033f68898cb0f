"""The ServerApp that Flower runs: a relay between the coordinator's socket and Flower's grid. It decides nothing.

===========================================================  =====  ====================================
header of a frame                                            body   direction
===========================================================  =====  ====================================
``{"send": number, "to": node, "kind": …, "ttl": seconds}``  yes    from the coordinator: a message
``{"reply": number}``                                        yes    to the coordinator: its reply
``{"lost": number, "reason": …}``                            no     to it: there will be no reply
``{"nodes": {id: time of connection}}``                      no     to it: the connected nodes
===========================================================  =====  ====================================
"""

from __future__ import annotations

import os
import select
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl_lightning.network.flower.local_socket import connect
from fl_lightning.network.frames import pack, unpack

PULL_SECONDS = 0.2
"""Time between two looks for replies."""
NODES_SECONDS = 1.0
"""Time between two lists of the connected nodes."""
GRACE_SECONDS = 8.0
"""Time in which the relay must end by itself after the coordinator has closed the connection."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Relay until the coordinator closes the connection."""
    connection = connect()
    end_after_close(connection)
    try:
        relay(grid, connection)
    except (EOFError, ConnectionError):
        return
    finally:
        connection.close()


def end_after_close(connection: Connection, grace: float = GRACE_SECONDS) -> None:
    """End this process `grace` seconds after the other side has closed the connection, whatever it is doing then.

    If the server was killed, its SuperLink is gone too, and a call to it that retries would keep the relay alive for
    minutes.
    """
    watched = os.dup(connection.fileno())  # a separate descriptor: that of a closed connection may be reused

    def watch() -> None:
        poll = select.poll()
        poll.register(watched, getattr(select, "POLLRDHUP", 0))  # POLLHUP is always reported
        poll.poll()
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def relay(grid: Grid, connection: Connection) -> None:
    """Pass messages on in both directions.

    Raises:
        EOFError: when the coordinator closes the connection.
    """
    numbers: dict[str, int] = {}  # {Flower's id of a message without a reply: our number}
    nodes_sent = 0.0
    while True:
        if connection.poll(PULL_SECONDS):
            header, body = unpack(connection.recv_bytes())
            message = Message(to_record(body), header["to"], header["kind"], ttl=header["ttl"])
            if message_id := next(iter(grid.push_messages([message])), None):
                numbers[message_id] = header["send"]
            else:
                connection.send_bytes(pack({"lost": header["send"], "reason": "the site is not connected"}))
            continue  # messages to send go first
        for reply in grid.pull_messages(list(numbers)) if numbers else ():
            number = numbers.pop(reply.metadata.reply_to_message_id, None)
            if number is None:
                continue
            if reply.has_error():
                connection.send_bytes(pack({"lost": number, "reason": str(reply.error.reason)[:300]}))
            else:
                connection.send_bytes(pack({"reply": number}, from_record(reply.content)))
        if time.monotonic() - nodes_sent > NODES_SECONDS:
            nodes_sent = time.monotonic()
            connection.send_bytes(pack({"nodes": _nodes(grid)}))


def _nodes(grid: Grid) -> dict[str, str]:
    """{id: time of connection} of the connected nodes; one that was away in between has lost its message."""
    if hasattr(grid, "get_nodes"):
        return {str(node.node_id): str(node.last_activated_at) for node in grid.get_nodes()}
    return {str(node_id): "" for node_id in grid.get_node_ids()}


def to_record(message: bytes) -> RecordDict:
    """Bytes as Flower carries them: an array, which it splits into chunks."""
    array = Array(dtype="uint8", shape=(len(message),), stype="bytes", data=message)
    return RecordDict({"message": ArrayRecord({"bytes": array})})


def from_record(content: Any) -> bytes:
    """The bytes of `to_record`; empty if there are none."""
    records = content.array_records
    return bytes(records["message"]["bytes"].data) if "message" in records and "bytes" in records["message"] else b""
