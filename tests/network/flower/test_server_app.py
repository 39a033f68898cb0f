import socket
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="flwr is not installed")

from fl_lightning.network.flower.server_app import from_record, relay, to_record
from fl_lightning.network.frames import pack, unpack


@pytest.mark.parametrize("message", [b"\1", b"x" * 12_000_000])
def test_bytes_travel_as_they_are(message):
    assert from_record(to_record(message)) == message


def test_a_record_of_others_is_empty():
    from flwr.app import ConfigRecord, RecordDict

    assert from_record(RecordDict({"other": ConfigRecord({"a": 1})})) == b""


class FakeMessage:
    """What a relay needs of a message; Flower's own wants to know the run that it belongs to."""

    def __init__(self, content, to=0, kind="", *, ttl=0.0, error=None, answers=None):
        self.content, self.error = content, error
        self.metadata = SimpleNamespace(dst_node_id=to, message_type=kind, ttl=ttl, reply_to_message_id=answers)

    def has_error(self):
        return self.error is not None


class Grid:
    """Answers each message with its bytes turned round; node 13 is not there, node 14 fails."""

    def __init__(self):
        self.count, self.replies = 0, []

    def get_node_ids(self):
        return [11, 14]

    def push_messages(self, messages):
        for message in messages:
            if message.metadata.dst_node_id == 13:
                yield None
                continue
            self.count += 1
            if message.metadata.dst_node_id == 14:
                error = SimpleNamespace(reason="the node has gone")
                self.replies.append(FakeMessage(None, error=error, answers=f"m{self.count}"))
            else:
                turned = to_record(from_record(message.content)[::-1])
                self.replies.append(FakeMessage(turned, answers=f"m{self.count}"))
            yield f"m{self.count}"

    def pull_messages(self, message_ids):
        found = [r for r in self.replies if r.metadata.reply_to_message_id in message_ids]
        self.replies = [r for r in self.replies if r not in found]
        return found


def test_the_relay_moves_messages_both_ways_and_says_who_is_there(monkeypatch):
    monkeypatch.setattr("fl_lightning.network.flower.server_app.Message", FakeMessage)
    here, there = Pipe()
    ended = []

    def run():
        try:
            relay(Grid(), there)
        except EOFError:
            ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    for number, node in enumerate((11, 13, 14)):
        here.send_bytes(pack({"send": number, "to": node, "kind": "train", "ttl": 9.0}, b"abc"))
    found, end = {}, time.monotonic() + 20
    while len(found) < 4 and time.monotonic() < end:
        if not here.poll(1):
            continue
        header, body = unpack(here.recv_bytes())
        found[next(iter(header.items())) if "nodes" not in header else "nodes"] = (header, body)
    assert found["reply", 0][1] == b"cba"
    assert found["lost", 1][0]["reason"] == "the site is not connected"
    assert found["lost", 2][0]["reason"] == "the node has gone"
    assert found["nodes"][0] == {"nodes": {"11": "", "14": ""}}
    here.close()
    thread.join(5)
    assert ended == [True]


STUCK = """
import sys, time
from multiprocessing.connection import Connection
from fl_lightning.network.flower.server_app import end_after_close
end_after_close(Connection(int(sys.argv[1])), grace=0.5)
print("ready", flush=True)
time.sleep(120)
"""


def test_a_relay_that_is_stuck_ends_soon_after_the_coordinator_has_gone():
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", STUCK, str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True) as relay_process:
        theirs.close()
        try:
            assert relay_process.stdout.readline() == "ready\n"
            ours.sendall(b"unread")  # what waits to be read does not hide that nobody is there any more
            time.sleep(1.0)
            assert relay_process.poll() is None  # not before the coordinator hangs up
            ours.close()
            assert relay_process.wait(10) == 1
        finally:
            relay_process.kill()
