import threading
import time
from multiprocessing import Pipe

import pytest

from fl_lightning.errors import RunError
from fl_lightning.network.coordinator.transport import FlowerTransport, Reply
from fl_lightning.network.frames import pack, unpack


@pytest.fixture
def ends():
    """(post, the relay's end)."""
    here, there = Pipe()
    post = FlowerTransport(here, {"hr/a": 11, "hr/b": 2**63 + 1})
    yield post, there
    post.close()


def test_messages_go_to_the_node_that_has_the_clients_key(ends):
    post, relay = ends
    assert post.send("hr/b", "train", b"work", 9.0) == 1
    assert unpack(relay.recv_bytes()) == ({"send": 1, "to": 2**63 + 1, "kind": "train", "ttl": 9.0}, b"work")
    assert post.send("hr/a", "query", b"", 1.0) == 2


def test_answers_come_with_the_number_of_their_question(ends):
    post, relay = ends
    relay.send_bytes(pack({"reply": 5}, b"done"))
    relay.send_bytes(pack({"lost": 6, "reason": "no such node"}))
    assert post.receive(5) == Reply(5, b"done")
    assert post.receive(5) == Reply(6, None, "no such node")
    assert post.receive(0.01) is None


def test_only_nodes_with_a_known_key_are_online(ends):
    post, relay = ends
    assert post.online() == {}
    relay.send_bytes(pack({"nodes": {"11": "noon", "12": "ten"}}))
    end = time.monotonic() + 5
    while not post.online() and time.monotonic() < end:
        time.sleep(0.01)
    assert post.online() == {"hr/a": "noon"}


def test_a_relay_that_has_gone_ends_the_run(ends):
    post, relay = ends
    relay.close()
    with pytest.raises(RunError, match="no message reaches the sites any more"):
        post.receive(5)
    with pytest.raises(RunError, match="no message reaches the sites any more"):
        post.send("hr/a", "train", b"x" * 10**6, 1.0)


def test_nobody_listens_any_more_after_hanging_up():
    before = threading.active_count()
    for _ in range(20):  # a listener left behind would take what comes through the next pipe of the same number
        here, there = Pipe()
        post = FlowerTransport(here, {})
        there.send_bytes(pack({"reply": 1}, b"x"))
        assert post.receive(5) == Reply(1, b"x")
        post.close()
        there.close()
    assert threading.active_count() == before


def test_what_the_relay_hangs_on_is_looked_after():
    here, _there = Pipe()

    def check():
        raise RunError("the SuperLink has ended")

    post = FlowerTransport(here, {}, check)
    with pytest.raises(RunError, match="the SuperLink has ended"):
        post.receive(0.01)
    post.close()


def test_a_large_message_each_way_at_once_blocks_nobody(ends):
    post, relay = ends
    big = b"x" * 3_000_000
    thread = threading.Thread(target=lambda: relay.send_bytes(pack({"reply": 1}, big)))
    thread.start()
    sender = threading.Thread(target=lambda: post.send("hr/a", "train", big, 1.0))
    sender.start()
    assert len(unpack(relay.recv_bytes())[1]) == len(big)
    assert len(post.receive(10).body) == len(big)
    thread.join(5)
    sender.join(5)
