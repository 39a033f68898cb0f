"""How the SuperLink gets a port, with a stand-in for Flower's program."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="flwr is not installed")

from fl_lightning.errors import InputError, RunError
from fl_lightning.network.flower import subprocesses, superlink
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.tls import make_certificates, server_files

STAND_IN = """#!{python}
import socket, ssl, sys
options = dict(zip(sys.argv[1::1], sys.argv[2::1]))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(options["--ssl-certfile"], options["--ssl-keyfile"])
listener = socket.socket()
try:
    listener.bind((options["--host"], int(options["--port"])))
except OSError as error:
    sys.exit(str(error))
listener.listen()
while True:
    try:
        context.wrap_socket(listener.accept()[0], server_side=True).close()
    except OSError:
        pass
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program of the name of Flower's, first on the PATH."""
    path = tmp_path / "bin" / "flower-superlink"
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    environment = subprocesses.flower_environment

    def with_stand_in(home, **more):
        made = environment(home, **more)
        return {**made, "PATH": f"{path.parent}{os.pathsep}{made['PATH']}"}

    monkeypatch.setattr(superlink.subprocesses, "flower_environment", with_stand_in)
    return path


@pytest.fixture
def stranger():
    """A socket of another program that listens, and never says a word of TLS."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken


def start(folder, tmp_path, port):
    make_certificates(tmp_path / "certs", ["hr/a"])
    return superlink.SuperLink(folder, server_files(tmp_path / "certs"), "127.0.0.1", port)


def test_a_port_that_another_program_took_is_left_to_it(program, stranger, tmp_path, monkeypatch):
    free_port, tried = subprocesses.free_port, []

    def taken_first():
        tried.append(stranger.getsockname()[1] if not tried else free_port())
        return tried[-1]

    monkeypatch.setattr(superlink.subprocesses, "free_port", taken_first)
    with SocketFolder() as folder:
        link = start(folder, tmp_path, free_port())
        try:
            assert len(tried) == 2
            assert f"127.0.0.1:{tried[1]}" in (link.home / "config.toml").read_text()
            link.check()
        finally:
            link.close()


def test_a_taken_network_port_is_an_error_that_names_it(program, stranger, tmp_path):
    with SocketFolder() as folder, pytest.raises(RunError, match=r"the reverse proxy ended .*is network\.port taken"):
        start(folder, tmp_path, stranger.getsockname()[1])


def test_another_version_of_flower_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.50.0")
    with pytest.raises(InputError, match=r"flwr: expected version >=1\.41,<1\.43, got 1\.50\.0"):
        superlink.check_flower()


def test_json_is_found_between_other_output():
    text = 'hello {x\n{"a": {"b": 1}}\nbye\n{"c": 2}'
    assert superlink._json_objects(text) == [{"a": {"b": 1}}, {"c": 2}]


def test_a_failed_command_of_flower_is_an_error_with_its_output(monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout='{"success": false}', stderr="no such\nfederation")
    monkeypatch.setattr(superlink.subprocess, "run", lambda *_, **__: failed)
    link = superlink.SuperLink.__new__(superlink.SuperLink)
    link._environment, link.home = {}, None
    with pytest.raises(RunError, match=r"flwr run: exit code 1: .*no such federation"):
        link._flwr([["run", "."]])
