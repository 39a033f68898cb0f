import threading
from multiprocessing import AuthenticationError

import pytest

from fl_lightning.network.flower.local_socket import FOLDER_VARIABLE, SocketFolder, connect


def test_both_ends_meet_and_only_this_user_may_look(monkeypatch):
    with SocketFolder() as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert (folder.path / "key").stat().st_mode & 0o777 == 0o600
        listener = folder.listen()
        heard = []

        def serve():
            with listener.accept() as connection:
                heard.append(connection.recv_bytes())
                connection.send_bytes(b"yes")

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder.path))
        with connect() as connection:
            connection.send_bytes(b"there?")
            assert connection.recv_bytes() == b"yes"
        thread.join(5)
        assert heard == [b"there?"]
    assert not folder.path.exists()


def test_another_key_is_not_let_in():
    with SocketFolder() as folder:
        listener = folder.listen()
        refused = []

        def serve():
            try:
                listener.accept()
            except AuthenticationError as error:
                refused.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        (folder.path / "key").write_bytes(b"guessed")
        with pytest.raises(AuthenticationError):
            connect(folder.path)
        thread.join(5)
        assert len(refused) == 1


def test_without_a_parent_there_is_nothing_to_connect_to(monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(RuntimeError, match="not started by 'fl-lightning server' or 'client'"):
        connect()
