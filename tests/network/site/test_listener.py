import socket
import threading

from fl_lightning.network.flower.local_socket import SocketFolder, connect
from fl_lightning.network.site.listener import receive_requests


def test_a_request_arrives_after_others_broke_off():
    with SocketFolder() as folder:
        requests = receive_requests(folder)
        with socket.socket(socket.AF_UNIX) as peer:  # breaks off in the handshake
            peer.connect(str(folder.path / "socket"))
        replies = []

        def ask():
            connect(folder.path).close()  # breaks off after it
            with connect(folder.path) as connection:
                connection.send_bytes(b"fit")
                replies.append(connection.recv_bytes())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        connection, message = requests.get(timeout=10)
        assert message == b"fit"
        with connection:
            connection.send_bytes(b"done")
        thread.join(10)
        assert replies == [b"done"]
        assert requests.empty()


def test_the_thread_ends_when_the_folder_is_closed():
    def listeners():  # those of earlier tests may be about to end
        return {thread for thread in threading.enumerate() if thread.name == "site-listener"}

    before = listeners()
    with SocketFolder() as folder:
        receive_requests(folder)
        (started,) = listeners() - before
    started.join(60)
    assert not started.is_alive()
