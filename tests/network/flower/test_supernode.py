import contextlib
import subprocess
import sys

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


def test_a_killed_site_is_waited_for_as_long_as_flower_counts_it_as_connected():
    assert sum(supernode.RETRY_DELAYS) > 60  # two heartbeat intervals of 30 s
