"""Who is not let in by Flower with TLS and node authentication, and what is not taken from who is."""

import threading
import time

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture
def link(tmp_path):
    """(SuperLink that knows hr/a's key, post, folder of certificates, port)."""
    from fl_lightning.network.coordinator.transport import FlowerTransport
    from fl_lightning.network.flower.local_socket import SocketFolder
    from fl_lightning.network.flower.subprocesses import free_port
    from fl_lightning.network.flower.superlink import SuperLink
    from fl_lightning.network.tls import make_certificates, public_keys, server_files

    certs, port = tmp_path / "certs", free_port()
    make_certificates(certs, ["hr/a", "hr/stranger"])
    with SocketFolder() as folder:
        listener = folder.listen()
        link = SuperLink(folder, server_files(certs), "127.0.0.1", port)
        try:
            keys = public_keys(certs)
            link.register({"hr/a": keys["hr/a"]})
            link.run()
            post = FlowerTransport(listener.accept(), link.nodes, link.check)
            yield link, post, certs, port
            post.close()
        finally:
            link.close()


@pytest.fixture
def node(tmp_path, link):
    """Function that starts a SuperNode with these arguments; (process, log file) comes back."""
    from fl_lightning.network.flower import subprocesses

    started = []

    def start(name, *arguments):
        home = tmp_path / name
        home.mkdir()
        command = ["flower-supernode", "--superlink", f"127.0.0.1:{link[3]}", "--port", str(subprocesses.free_port())]
        environment = subprocesses.flower_environment(home)
        child = subprocesses.start([*command, *arguments], environment, home / "log")
        started.append((child, home))
        return child, home / "log"

    yield start
    for child, home in started:
        subprocesses.stop(child, home)


def test_strangers_and_plaintext_are_not_let_in(link, node, tmp_path):
    import ssl

    import httpx

    from fl_lightning.network.tls import make_certificates, site_files

    _, post, certs, port = link
    trusted = ssl.create_default_context(cafile=certs / "ca.pem")
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, trust_env=False) as anybody:
        for path in (
            "/v1/control/start-run",
            "/v1/control/list-runs",
            "/docs",
            "/",
        ):  # nobody hands in code from outside
            assert anybody.post(path).status_code == 403
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
    subprocesses = {name: node(name.replace(" ", "_"), *arguments) for name, arguments in refused.items()}
    end = time.monotonic() + 90
    while any(child.poll() is None for child, _ in subprocesses.values()) and time.monotonic() < end:
        time.sleep(0.2)
        assert post.online() == {}
    said = {name: log.read_text(errors="replace")[-800:] for name, (_, log) in subprocesses.items()}
    assert all(child.poll() not in (None, 0) for child, _ in subprocesses.values()), said
    node("good", "--root-certificates", ca, "--auth-supernode-private-key", key)
    end = time.monotonic() + 60
    while not post.online():
        assert time.monotonic() < end
        time.sleep(0.2)
    assert list(post.online()) == ["hr/a"]


def test_what_is_not_an_answer_of_this_client_to_this_question_is_not_taken(link, monkeypatch):
    from fl_lightning.config import NetworkConfig
    from fl_lightning.network.compatibility import SharedSettings, SiteInfo
    from fl_lightning.network.coordinator.requests import RequestTracker
    from fl_lightning.network.flower.local_socket import SocketFolder
    from fl_lightning.network.flower.supernode import SuperNode
    from fl_lightning.network.tls import site_files
    from fl_lightning.network.validation import HEADER_BYTES
    from fl_lightning.storage.messages import decode, encode

    _, post, certs, port = link
    kept = []

    def answer(message):
        header, _ = decode(message)
        honest = {"client": "hr/a", "echo": header["echo"], "site": vars(SiteInfo("hr/a", 3, 2, 30, "ab", 8))}
        kept.append(encode(honest))
        return {
            "honest": kept[-1],
            "another client's name": encode({**honest, "client": "hr/b"}),
            "oversized": b"\0" * (HEADER_BYTES + 1),
            "replay": kept[0],
        }[header["do"]]

    requests = RequestTracker(post, run="5eed", settings=SharedSettings({}, "fp32", "ab"), network=NetworkConfig())

    def ask(do):
        requests.ask("hr/a", "query", {"do": do}, [], HEADER_BYTES, 60.0)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for _, header, _ in requests.answers({}):
                return header
        raise AssertionError(f"no answer to {do}")

    with SocketFolder() as folder:
        listener = folder.listen()

        def serve():
            while True:
                with listener.accept() as connection:
                    connection.send_bytes(answer(connection.recv_bytes()))

        threading.Thread(target=serve, daemon=True).start()
        files = site_files(certs, "hr/a")
        node = SuperNode(folder, files.ca, files.key, f"127.0.0.1:{port}", "hr", "a")
        try:
            while not post.online():
                time.sleep(0.2)
                node.check()
            assert ask("honest")["site"]["train"] == 3
            assert "in the name of 'hr/b', and the key is that of hr/a" in ask("another client's name")["failed"]
            assert "expected at most" in ask("oversized")["failed"]
            assert "late, or sent a second time" in ask("replay")["failed"]
        finally:
            node.close()
