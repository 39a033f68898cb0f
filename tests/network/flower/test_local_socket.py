import queue
import socket
import threading
from multiprocessing import AuthenticationError

import pytest

from fl_lightning.network.flower.local_socket import FOLDER_VARIABLE, SocketFolder, connect


@pytest.fixture
def folder():
    with SocketFolder() as folder:
        yield folder


def echo_once(folder):
    """Start a thread that accepts one process and echoes one message."""

    def serve():
        with folder.accept() as connection:
            connection.send_bytes(connection.recv_bytes())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def ask(folder, message=b"there?"):
    """The reply to a message; a listener that is dead fails the test, which would wait for ever otherwise."""
    replies = queue.Queue()

    def run():
        with connect(folder.path) as connection:
            connection.send_bytes(message)
            replies.put(connection.recv_bytes())

    threading.Thread(target=run, daemon=True).start()
    return replies.get(timeout=10)


def test_both_ends_meet_and_only_this_user_may_look(monkeypatch):
    with SocketFolder() as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert (folder.path / "key").stat().st_mode & 0o777 == 0o600
        thread = echo_once(folder)
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder.path))
        with connect() as connection:
            connection.send_bytes(b"there?")
            assert connection.recv_bytes() == b"there?"
        thread.join(5)
    assert not folder.path.exists()


def test_another_key_is_refused_and_the_next_process_is_accepted(folder, log_messages):
    echo_once(folder)
    key = (folder.path / "key").read_bytes()
    (folder.path / "key").write_bytes(b"guessed")
    with pytest.raises(AuthenticationError):
        connect(folder.path)
    (folder.path / "key").write_bytes(key)
    assert ask(folder) == b"there?"
    assert any("AuthenticationError" in m and "still listening" in m for m in log_messages)


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\x04abc"])
def test_a_process_that_breaks_off_in_the_handshake_leaves_the_listener_alive(folder, log_messages, sent):
    echo_once(folder)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(folder.path / "socket"))
            peer.sendall(sent)
    assert ask(folder) == b"there?"
    assert any(m.startswith("WARNING a process failed to connect") for m in log_messages)


@pytest.mark.parametrize("error", [ConnectionResetError, OSError, EOFError])
def test_an_error_of_accept_is_logged_and_the_next_process_is_accepted(folder, monkeypatch, log_messages, error):
    accept, errors = folder._listener.accept, [error("broken"), error("broken")]

    def flaky():
        if errors:
            raise errors.pop()
        return accept()

    monkeypatch.setattr(folder._listener, "accept", flaky)
    echo_once(folder)
    assert ask(folder) == b"there?"
    assert sum(error.__name__ in m for m in log_messages) == 2


def test_closing_the_folder_ends_a_waiting_accept():
    folder = SocketFolder()
    accepted = []
    thread = threading.Thread(target=lambda: accepted.append(folder.accept()), daemon=True)
    thread.start()
    folder.close()
    thread.join(5)
    assert accepted == [None]
    assert folder.accept() is None


def test_without_a_parent_there_is_nothing_to_connect_to(monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(RuntimeError, match="not started by 'fl-lightning server' or 'client'"):
        connect()
