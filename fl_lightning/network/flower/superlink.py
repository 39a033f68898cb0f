"""Flower's server side as children of this process: a SuperLink with TLS and node authentication, and one run on it.

The SuperLink listens on the loopback interface, and `fl_lightning.network.coordinator.reverse_proxy` before it on the
server's address.

The run is a bundle that holds a pyproject.toml alone and names apps of the installed package, so no code travels. Its
ServerApp is the relay of `fl_lightning.network.flower.server_app`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_lightning import signals
from fl_lightning.errors import InputError, RunError
from fl_lightning.network.flower import subprocesses
from fl_lightning.network.flower.local_socket import VARIABLE, SocketFolder
from fl_lightning.network.flower.subprocesses import free_port
from fl_lightning.network.tls import ServerFiles, make_certificates, server_files

log = logging.getLogger(__name__)

START = 60.0
"""Seconds in which the SuperLink must listen."""
NAME = "fl-lightning"
SLACK = 2**20
"""Bytes that Flower puts around a message."""

BUNDLE = """[project]
name = "fl-lightning-relay"
version = "1.0.0"
description = "Names the apps of the installed fl_lightning package."
license = { text = "Apache-2.0" }
dependencies = []

[tool.flwr.app]
publisher = "fl-lightning"

[tool.flwr.app.components]
serverapp = "fl_lightning.network.flower.server_app:app"
clientapp = "fl_lightning.network.flower.client_app:app"
"""


class SuperLink:
    """A running SuperLink; `close` ends it and all that it started.

    Args:
        folder: where the relay finds its socket and Flower its home.
        files: the server's certificate and key.
        host: the address to listen on.
        port: the port to listen on.
        max_message_mb: a larger request is refused.
        bundle_text: the pyproject.toml of what `run` runs.

    Attributes:
        nodes: {client_id: Flower's id of the node whose key is that client's}; after `register`.

    Raises:
        RunError: if it does not come up.
    """

    def __init__(
        self,
        folder: SocketFolder,
        files: ServerFiles,
        host: str,
        port: int,
        *,
        max_message_mb: float = 1024.0,
        bundle_text: str = BUNDLE,
    ) -> None:
        from fl_lightning.network.coordinator.reverse_proxy import Settings  # Flower's extra brings what it needs

        self.home, self.log = folder.path / "flower", folder.path / "superlink.log"
        self.nodes: dict[str, int] = {}
        bundle = folder.path / "bundle"
        for place in (self.home, bundle):
            place.mkdir()
        (bundle / "pyproject.toml").write_text(bundle_text, encoding="utf-8")
        inside = folder.path / "inside"  # a key of its own: whoever has the server's could be anybody on the network
        make_certificates(inside, ["none/none"])
        own, inner = server_files(inside), free_port()
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\naddress = "127.0.0.1:{inner}"\n'
            f"root-certificates = {json.dumps(str(own.ca.resolve()))}\n",
            encoding="utf-8",
        )
        self._bundle = bundle
        self._environment = subprocesses.flower_environment(
            self.home, **{VARIABLE: str(folder.path), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        )
        command = [
            "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(inner)),
            *("--ssl-ca-certfile", str(own.ca), "--ssl-certfile", str(own.certificate)),
            *("--ssl-keyfile", str(own.key)),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]
        self._child = subprocesses.start(command, self._environment, self.log)
        self._gate: subprocess.Popen[bytes] | None = None
        limit = int(max_message_mb * 2**20) + SLACK
        behind, shown = f"https://127.0.0.1:{inner}", (str(files.certificate), str(files.key))
        settings = Settings(host, port, *shown, behind, str(own.ca), limit)
        try:
            self._wait_until_it_listens("127.0.0.1", inner)
            gate = [
                sys.executable,
                "-m",
                "fl_lightning.network.coordinator.reverse_proxy",
                str(settings.write(folder.path / "gate.json")),
            ]
            self._gate = subprocesses.start(gate, self._environment, self.log)
            # Reached on the loopback interface where it listens everywhere.
            self._wait_until_it_listens({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
        except BaseException:
            self.close()
            raise

    def _wait_until_it_listens(self, host: str, port: int) -> None:
        end = time.monotonic() + START
        while True:
            signals.check()
            self.check()
            try:
                with socket.create_connection((host, port), timeout=1.0):
                    return
            except OSError:
                if time.monotonic() > end:
                    raise RunError(
                        f"nothing listens on {host}:{port} after {START:.0f} s: {subprocesses.tail(self.log)}"
                    ) from None
            time.sleep(0.1)

    def register(self, keys: Mapping[str, Path]) -> None:
        """Let the owners of these public keys in; what Flower then says of a node is known to be of that client.

        Raises:
            RunError: if a key is not taken.
        """
        commands = [["supernode", "register", str(path.resolve()), NAME, "--format", "json"] for path in keys.values()]
        for client_id, answer in zip(keys, self._flwr(commands), strict=True):
            self.nodes[client_id] = int(answer["node-id"])

    def run(self) -> None:
        """Start the relay's run.

        Raises:
            RunError: if Flower does not take it.
        """
        self._flwr([["run", str(self._bundle), NAME, "--format", "json"]])

    def check(self) -> None:
        """Check that it is still there.

        Raises:
            RunError: if it has ended.
        """
        for name, child in (("Flower's SuperLink", self._child), ("the gate before it", self._gate)):
            if child is not None and (code := child.poll()) is not None:
                said = subprocesses.reason(self.log)
                raise RunError(f"{name} ended with exit code {code}: {said}; is network.port taken?")

    def said(self) -> str:
        """The last lines of its log."""
        return subprocesses.tail(self.log)

    def close(self) -> None:
        """End it and all that it started."""
        if self._gate is not None:
            subprocesses.stop(self._gate)
        subprocesses.stop(self._child, self.home)

    def _flwr(self, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """What Flower's command line answers, in one process for all commands."""
        done = subprocess.run(
            [sys.executable, "-m", "fl_lightning.network.flower.flwr_commands", json.dumps(commands)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=self.home,
            check=False,
        )
        answers = _objects(done.stdout)
        if done.returncode != 0 or len(answers) != len(commands) or not all(a.get("success") for a in answers):
            said = " ".join((done.stdout + " " + done.stderr).split())[-600:]
            raise RunError(f"flwr {commands[0][0]}: exit code {done.returncode}: {said}")
        return answers


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, one after another, whatever stands between them."""
    found, decoder, place = [], json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
            found.append(value)
        except ValueError:
            end = place + 1
        place = text.find("{", end)
    return found


def check_flower() -> None:
    """Check that Flower is here, in a version whose commands are known.

    Raises:
        InputError: saying how to get it.
    """
    from importlib.metadata import PackageNotFoundError, version

    wanted = "wanted flwr>=1.41,<1.43: pip install 'fl_lightning[flower]'"
    try:
        found = version("flwr")
    except PackageNotFoundError as error:
        raise InputError(f"server and client need Flower, which is not installed; {wanted}") from error
    if not (1, 41) <= tuple(int(part) for part in found.split(".")[:2]) < (1, 43):
        raise InputError(f"flwr: got version {found}; {wanted}")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
