"""Which nodes Flower lets in, and which replies are rejected, with TLS and node authentication."""

import contextlib
import threading
import time

import pytest

from fl_lightning.launch import reserve_port

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.xdist_group("network")]


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    from fl_lightning.network.tls import make_certificates

    folder = tmp_path_factory.mktemp("keys") / "certs"
    make_certificates(folder, ["hr/a", "hr/stranger"])
    return folder


@pytest.fixture(scope="module")
def server(certs):
    """(transport of a SuperLink that knows only hr/a's key, its port)."""
    from fl_lightning.network.coordinator.transport import FlowerTransport
    from fl_lightning.network.flower.local_socket import SocketFolder
    from fl_lightning.network.flower.superlink import SuperLink
    from fl_lightning.network.tls import public_keys, server_files

    holder, port = reserve_port()
    with contextlib.closing(holder), SocketFolder() as folder:
        superlink = SuperLink(folder, server_files(certs), "127.0.0.1", port)
        try:
            superlink.register({"hr/a": public_keys(certs)["hr/a"]})
            superlink.run()
            transport = FlowerTransport(folder.accept(), superlink.nodes, superlink.check)
            yield transport, port
            transport.close()
        finally:
            superlink.close()


@pytest.fixture
def start_node(tmp_path, server):
    """Function that starts a SuperNode with these arguments; (process, log file) comes back."""
    from fl_lightning.network.flower import subprocesses

    started = []

    def start(name, *arguments):
        home = tmp_path / name
        home.mkdir()
        command = ["flower-supernode", "--superlink", f"127.0.0.1:{server[1]}"]
        command += ["--port", str(subprocesses.free_port()), *arguments]
        child = subprocesses.start(command, subprocesses.flower_environment(home), home / "log")
        started.append((child, home))
        return child, home / "log"

    yield start
    for child, home in started:
        subprocesses.stop(child, home)


def test_nobody_submits_code_from_outside(server, certs):
    import ssl

    import httpx

    context = ssl.create_default_context(cafile=certs / "ca.pem")
    with httpx.Client(base_url=f"https://127.0.0.1:{server[1]}", verify=context, trust_env=False) as client:
        for path in ("/v1/control/start-run", "/v1/control/list-runs", "/docs", "/"):
            assert client.post(path).status_code == 403


def test_strangers_and_plaintext_are_refused(server, certs, start_node, tmp_path):
    from fl_lightning.network.tls import make_certificates, site_files

    make_certificates(tmp_path / "others", ["hr/a"])
    key = str(site_files(certs, "hr/a").key)
    ca, other_ca = str(certs / "ca.pem"), str(tmp_path / "others" / "ca.pem")
    refused = {
        "unregistered key": ["--root-certificates", ca, "--auth-supernode-private-key",
                             str(site_files(certs, "hr/stranger").key)],
        "no key": ["--root-certificates", ca],
        "wrong CA": ["--root-certificates", other_ca, "--auth-supernode-private-key", key, "--max-wait-time", "5"],
        "plaintext": ["--insecure", "--max-wait-time", "5"],
    }  # fmt: skip
    nodes = {name: start_node(name.replace(" ", "_"), *arguments) for name, arguments in refused.items()}
    end = time.monotonic() + 90
    while any(child.poll() is None for child, _ in nodes.values()) and time.monotonic() < end:
        time.sleep(0.2)
        assert server[0].online() == {}
    said = {name: log.read_text(errors="replace")[-800:] for name, (_, log) in nodes.items()}
    assert all(child.poll() not in (None, 0) for child, _ in nodes.values()), said


def test_only_a_reply_of_this_client_to_this_request_is_accepted(server, certs):
    from fl_lightning.config import NetworkConfig
    from fl_lightning.network.compatibility import SharedSettings, SiteInfo
    from fl_lightning.network.coordinator.requests import RequestTracker
    from fl_lightning.network.flower.local_socket import SocketFolder
    from fl_lightning.network.flower.supernode import SuperNode
    from fl_lightning.network.site.listener import receive_requests
    from fl_lightning.network.tls import site_files
    from fl_lightning.network.validation import HEADER_BYTES
    from fl_lightning.storage.messages import decode, encode

    transport, port = server
    sent = []

    def reply_to(message):
        header, _ = decode(message)
        info = vars(SiteInfo("hr/a", 3, 2, 0, 30, "ab", 8))
        honest = {"client": "hr/a", "request_id": header["request_id"], "site": info}
        sent.append(encode(honest))
        return {
            "honest": sent[-1],
            "another client's name": encode({**honest, "client": "hr/b"}),
            "oversized": b"\0" * (HEADER_BYTES + 1),
            "replay": sent[0],
        }[header["do"]]

    settings = SharedSettings({}, "fp32", "ab")
    requests = RequestTracker(transport, run="5eed", settings=settings, network=NetworkConfig())

    with SocketFolder() as folder:
        queue = receive_requests(folder)

        def serve():
            while True:
                connection, message = queue.get()
                with connection:
                    connection.send_bytes(reply_to(message))

        threading.Thread(target=serve, daemon=True).start()
        files = site_files(certs, "hr/a")
        node = SuperNode(folder, files.ca, files.key, f"127.0.0.1:{port}", "hr", "a")
        try:
            end = time.monotonic() + 90
            while not transport.online():
                assert time.monotonic() < end
                time.sleep(0.2)
                node.check()
            assert list(transport.online()) == ["hr/a"]
            kinds = ("honest", "another client's name", "oversized", "replay")
            replies = {}
            for batch in (kinds[:1], kinds[1:]):  # the first is replayed later; Flower starts a process for each
                for kind in batch:
                    requests.send("hr/a", "query", {"do": kind}, [], HEADER_BYTES, 90.0)
                kind_of = dict(zip(requests.pending, batch, strict=True))
                end = time.monotonic() + 90
                while requests.pending and time.monotonic() < end:
                    before = set(requests.pending)
                    for _, header, _ in requests.replies({}):
                        (number,) = before - set(requests.pending)
                        replies[kind_of[number]] = header
                        before = set(requests.pending)
            assert replies["honest"]["site"]["train"] == 3
            assert "a reply of hr/a, whose key it came with, got one of 'hr/b'" in replies[kinds[1]]["failed"]
            assert "expected at most" in replies["oversized"]["failed"]
            assert "late, or sent again" in replies["replay"]["failed"]
        finally:
            node.close()
