import socket
import time

from fl_lightning.network.flower.local_socket import SocketFolder, connect
from fl_lightning.network.site.listener import receive_requests


def test_a_request_arrives_after_others_broke_off():
    with SocketFolder() as folder:
        requests = receive_requests(folder)
        with socket.socket(socket.AF_UNIX) as peer:  # breaks off in the handshake
            peer.connect(str(folder.path / "socket"))
        connect(folder.path).close()  # breaks off after it
        with connect(folder.path) as connection:
            connection.send_bytes(b"fit")
            reply_to, message = requests.get(timeout=10)
            assert message == b"fit"
            reply_to.send_bytes(b"done")
            assert connection.recv_bytes() == b"done"
            reply_to.close()
        assert requests.empty()


def test_the_thread_ends_when_the_folder_is_closed():
    import threading

    def listeners():
        return [thread for thread in threading.enumerate() if thread.name == "site-listener"]

    before = len(listeners())
    with SocketFolder() as folder:
        receive_requests(folder)
        assert len(listeners()) == before + 1
    end = time.monotonic() + 5
    while len(listeners()) > before and time.monotonic() < end:
        time.sleep(0.01)
    assert len(listeners()) == before
