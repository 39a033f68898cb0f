import contextlib
import subprocess
import sys
import types

import pytest

from fl_lightning.errors import RunError
from fl_lightning.network.flower import subprocesses, supernode
from fl_lightning.network.flower.local_socket import SocketFolder

DELAYS = (0.0, 0.0)


@pytest.fixture
def start_node(monkeypatch, tmp_path):
    """Factory of a SuperNode whose process ends with the next of some (exit code, output)."""
    nodes = []

    def start(*lives, delays=DELAYS):
        planned = iter(lives)

        def end_at_once(command, environment, log):
            code, text = next(planned)
            with log.open("ab") as output:
                script = f"print({text!r}); raise SystemExit({code})"
                child = subprocess.Popen([sys.executable, "-c", script], stdout=output, start_new_session=True)
            child.wait(20)
            return child

        monkeypatch.setattr(supernode, "RETRY_DELAYS", delays)
        monkeypatch.setattr(subprocesses, "start", end_at_once)
        folder = stack.enter_context(SocketFolder())
        nodes.append(supernode.SuperNode(folder, tmp_path / "ca", tmp_path / "key", "127.0.0.1:9", "hr", "c"))
        return nodes[-1]

    with contextlib.ExitStack() as stack:
        yield start
        for node in nodes:
            node.close()


def fail_and_restart(node):
    """The process is found ended, and is started again."""
    node.check()
    node.check()


def test_a_node_that_always_ends_is_given_up_with_the_last_reason(start_node):
    node = start_node((1, "first"), (1, "second"), (3, "third"))
    fail_and_restart(node)
    fail_and_restart(node)
    with pytest.raises(RunError, match=r"got exit code 3 \(third\) at start 3"):
        node.check()


def test_failures_before_a_message_do_not_count_after_it(start_node):
    # A site that waited for its killed predecessor to be forgotten, then lost the server.
    node = start_node((1, ""), (1, ""), (0, "lost the server"), (0, "still lost"), (0, ""))
    fail_and_restart(node)
    fail_and_restart(node)
    node.delivered()
    fail_and_restart(node)
    fail_and_restart(node)
    with pytest.raises(RunError):
        node.check()


def test_the_reason_is_that_of_the_last_start(start_node, caplog):
    node = start_node((1, "Exit Code: 1\nnot yet registered"), (0, "disconnected"))
    fail_and_restart(node)
    node.check()
    assert [record.args[1] for record in caplog.records] == ["not yet registered", "disconnected"]


@pytest.fixture
def running(monkeypatch, tmp_path):
    """A SuperNode whose process does nothing, and functions: to log as Flower does, and to let time pass."""
    clock, started = types.SimpleNamespace(now=1000.0), []

    def start(command, environment, log):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
        started.append(child)
        return child

    monkeypatch.setattr(supernode, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(subprocesses, "start", start)

    def write(text):
        with node.log.open("ab") as file:
            file.write(text.encode())
        node.check()

    def wait(seconds):
        clock.now += seconds
        node.check()

    with SocketFolder() as folder:
        node = supernode.SuperNode(folder, tmp_path / "ca", tmp_path / "key", "127.0.0.1:9", "hr", "c")
        yield types.SimpleNamespace(node=node, clock=clock, started=started, write=write, wait=wait)
        node.close()


RECEIVED = "INFO :      Receiving: train message (ID: 9c)\n\x1b[92mINFO \x1b[0m:      Received successfully\n"
SENT = "INFO :      Sending: train message (ID: 9d)\nINFO :      Sent successfully\n"


def test_a_node_whose_client_app_never_answers_is_started_again(running, log_messages):
    running.write(RECEIVED)
    running.wait(supernode.STUCK_SECONDS - 1)
    assert len(running.started) == 1
    running.wait(2)
    assert running.started[0].poll() is not None  # it is ended before the next one starts
    running.wait(supernode.RETRY_DELAYS[0] + 1)
    assert len(running.started) == 2
    assert any("started again: it has had a message for more than 120 s" in message for message in log_messages)
    running.wait(10 * supernode.STUCK_SECONDS)  # what the first one received is not the second one's
    assert (len(running.started), running.started[1].poll()) == (2, None)


def test_a_node_whose_site_was_at_work_has_time_to_send_the_reply(running):
    running.write(RECEIVED)
    running.node.delivered()
    running.clock.now += 3600  # in which nobody checks, since the site trains
    running.node.answered()
    running.wait(supernode.STUCK_SECONDS - 1)
    running.write(SENT)
    running.wait(3600)
    assert len(running.started) == 1
    running.write(RECEIVED)
    running.wait(supernode.STUCK_SECONDS + 1)
    running.wait(60)
    assert len(running.started) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "RuntimeError: Heartbeat failed unexpectedly. The SuperLink does not recognize this SuperNode.\n",
            "its server does not know it any more",
        ),
        ("INFO :      Exit Code: 0\n", "it was about to end and did not"),
    ],
)
def test_a_node_that_has_lost_its_server_and_does_not_end_is_started_again(running, log_messages, line, reason):
    running.write(line[:20])
    running.write(line[20:])  # the last line of a log may be written in part only
    running.wait(supernode.LOST_SECONDS - 1)
    assert len(running.started) == 1
    running.wait(2)
    running.wait(60)
    assert len(running.started) == 2
    assert any(f"started again: {reason}" in message for message in log_messages)


def test_a_node_that_nobody_asks_is_left_alone(running):
    running.write("INFO :      SuperNode ID: 17\n")
    running.wait(1e6)
    assert (len(running.started), running.started[0].poll()) == (1, None)


def test_a_killed_site_is_waited_for_as_long_as_flower_counts_it_as_connected():
    assert sum(supernode.RETRY_DELAYS) > 60  # two heartbeat intervals of 30 s
