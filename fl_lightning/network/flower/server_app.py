"""The ServerApp that Flower runs: a relay between the coordinator's socket and Flower's grid. It decides nothing.

Frames from the coordinator: ``{"send": number, "to": node, "kind": …, "ttl": seconds}`` with the message. To it:
``{"reply": number}`` with what came back, ``{"lost": number, "reason": …}``, and ``{"nodes": {id: since when}}`` of
those connected.
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

PULL_EVERY = 0.2
LOOK_EVERY = 1.0
GRACE = 8.0
"""Seconds that a relay has to end by itself after the coordinator has hung up."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Relay until the coordinator hangs up."""
    connection = connect()
    end_after_hang_up(connection)
    try:
        relay(grid, connection)
    except (EOFError, ConnectionError):
        return
    finally:
        connection.close()


def end_after_hang_up(connection: Connection, grace: float = GRACE) -> None:
    """End this process some seconds after the other side has hung up, whatever it is doing then.

    Where the server was killed its SuperLink is gone too, and a call to it that waits and tries again would keep the
    relay alive for minutes.
    """
    watched = os.dup(connection.fileno())  # its own, since the number of a closed one may be another file's

    def watch() -> None:
        poll = select.poll()
        poll.register(watched, getattr(select, "POLLRDHUP", 0))  # and POLLHUP, which is always told
        poll.poll()
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def relay(grid: Grid, connection: Connection) -> None:
    """Move messages both ways.

    Raises:
        EOFError: when the coordinator hangs up.
    """
    waiting: dict[str, int] = {}
    looked = 0.0
    while True:
        if connection.poll(PULL_EVERY):
            header, body = unpack(connection.recv_bytes())
            message = Message(to_record(body), header["to"], header["kind"], ttl=header["ttl"])
            if message_id := next(iter(grid.push_messages([message])), None):
                waiting[message_id] = header["send"]
            else:
                connection.send_bytes(pack({"lost": header["send"], "reason": "the site is not connected"}))
            continue  # what is to be sent goes first
        for reply in grid.pull_messages(list(waiting)) if waiting else ():
            number = waiting.pop(reply.metadata.reply_to_message_id, None)
            if number is None:
                continue
            if reply.has_error():
                connection.send_bytes(pack({"lost": number, "reason": str(reply.error.reason)[:300]}))
            else:
                connection.send_bytes(pack({"reply": number}, from_record(reply.content)))
        if time.monotonic() - looked > LOOK_EVERY:
            looked = time.monotonic()
            connection.send_bytes(pack({"nodes": _nodes(grid)}))


def _nodes(grid: Grid) -> dict[str, str]:
    """Nodes that are connected, and since when: one that was away in between has lost what it was working on."""
    if hasattr(grid, "get_nodes"):
        return {str(node.node_id): str(node.last_activated_at) for node in grid.get_nodes()}
    return {str(node_id): "" for node_id in grid.get_node_ids()}


def to_record(message: bytes) -> RecordDict:
    """Bytes as Flower carries them: as an array, which it cuts into chunks."""
    array = Array(dtype="uint8", shape=(len(message),), stype="bytes", data=message)
    return RecordDict({"message": ArrayRecord({"bytes": array})})


def from_record(content: Any) -> bytes:
    """The bytes of `to_record`; empty where there are none."""
    records = content.array_records
    return bytes(records["message"]["bytes"].data) if "message" in records and "bytes" in records["message"] else b""
