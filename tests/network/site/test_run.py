"""The loop of a site, without Flower."""

import queue
from types import SimpleNamespace

from fl_lightning.network.site import run


class Connection:
    def __init__(self):
        self.sent = []

    def send_bytes(self, message):
        self.sent.append(message)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_the_supernode_learns_when_the_site_is_asked_and_when_it_has_answered(monkeypatch):
    monkeypatch.setattr(run, "LAST_REPLY_SECONDS", 0.0)
    said = []
    node = SimpleNamespace(check=lambda: None, **{n: (lambda n=n: said.append(n)) for n in ("delivered", "answered")})
    site = SimpleNamespace(finished=False, mismatch=None)

    def handle(message):
        said.append(message)
        site.finished = message == b"finish"
        return b"done"

    site.handle = handle
    connections, requests = [Connection(), Connection()], queue.Queue()
    for connection, message in zip(connections, (b"fit", b"finish"), strict=True):
        requests.put((connection, message))
    run._event_loop(site, node, requests)
    assert said == ["delivered", b"fit", "answered", "delivered", b"finish", "answered"]
    assert [connection.sent for connection in connections] == [[b"done"]] * 2
