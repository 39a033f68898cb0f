"""Flower's server side as child processes: a SuperLink with TLS and node authentication, and one run on it.

The SuperLink listens only on the loopback interface; `fl_lightning.network.flower.reverse_proxy` listens on the
server's address and passes on what sites may ask.

The run's bundle is a single pyproject.toml that names apps of the installed package, so no code is sent. Its ServerApp
is the relay of `fl_lightning.network.flower.server_app`.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_lightning import signals
from fl_lightning.errors import InputError, RunError
from fl_lightning.network.flower import subprocesses
from fl_lightning.network.flower.local_socket import FOLDER_VARIABLE, SocketFolder
from fl_lightning.network.tls import ServerFiles, make_certificates, server_files

START_SECONDS = 60.0
"""Time in which the SuperLink, and then the reverse proxy, must listen."""
PORT_TRIES = 3
"""Ports of the loopback interface to try: another process may take a free port before the SuperLink does."""
PORT_TAKEN = "address already in use"
FEDERATION = "fl-lightning"
"""Name of the SuperLink in Flower's config."""
MESSAGE_OVERHEAD = 2**20
"""Limit for what Flower adds to a message, in bytes."""

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
    """A running SuperLink behind a reverse proxy; `close` ends both and all processes that they started.

    Args:
        folder: where the relay finds its socket, and Flower its home.
        files: the server's certificate and key.
        host: address to listen on.
        port: to listen on.
        max_message_mb: larger requests are refused.
        bundle_text: the pyproject.toml of what `run` runs.

    Attributes:
        nodes: {client_id: Flower's id of the node with that client's key}; filled by `register`.

    Raises:
        RunError: if it does not start.
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
        from fl_lightning.network.flower.reverse_proxy import Settings  # needs the extra flower

        self.home, self.log = folder.path / "flower", folder.path / "superlink.log"
        self.nodes: dict[str, int] = {}
        self._bundle = folder.path / "bundle"
        for subfolder in (self.home, self._bundle):
            subfolder.mkdir()
        (self._bundle / "pyproject.toml").write_text(bundle_text, encoding="utf-8")
        self._environment = subprocesses.flower_environment(
            self.home, **{FOLDER_VARIABLE: str(folder.path), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        )
        self._superlink: subprocess.Popen[bytes] | None = None
        self._proxy: subprocess.Popen[bytes] | None = None
        # A separate authority and key: whoever has the server's key could be any machine on the network.
        make_certificates(folder.path / "inside", ["none/none"])
        inside = server_files(folder.path / "inside")
        try:
            inner_port = self._start_superlink(inside)
            settings = Settings(
                host=host,
                port=port,
                certificate=str(files.certificate),
                key=str(files.key),
                superlink=f"https://127.0.0.1:{inner_port}",
                superlink_ca=str(inside.ca),
                max_bytes=int(max_message_mb * 2**20) + MESSAGE_OVERHEAD,
            )
            path = settings.write(folder.path / "reverse_proxy.json")
            module = "fl_lightning.network.flower.reverse_proxy"
            command = [sys.executable, "-m", module, str(path)]
            self._proxy = subprocesses.start(command, self._environment, self.log)
            loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # reached here when it listens on all interfaces
            self._wait_until_it_listens(loopback.get(host, host), port, files.ca)
        except BaseException:
            self.close()
            raise

    def _start_superlink(self, files: ServerFiles) -> int:
        """Start it on a free port of the loopback interface, and return that."""
        for attempt in range(1, PORT_TRIES + 1):
            port, log_start = subprocesses.free_port(), self.log.stat().st_size if self.log.exists() else 0
            (self.home / "config.toml").write_text(
                f'[superlink]\ndefault = "{FEDERATION}"\n\n[superlink.{FEDERATION}]\naddress = "127.0.0.1:{port}"\n'
                f"root-certificates = {json.dumps(str(files.ca.resolve()))}\n",
                encoding="utf-8",
            )
            command = [
                "flower-superlink",
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--ssl-ca-certfile", str(files.ca), "--ssl-certfile", str(files.certificate)),
                *("--ssl-keyfile", str(files.key)),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ]
            self._superlink = subprocesses.start(command, self._environment, self.log)
            try:
                self._wait_until_it_listens("127.0.0.1", port, files.ca)
            except RunError:
                new_lines = self.log.read_bytes()[log_start:].decode("utf-8", "replace").lower()
                if attempt == PORT_TRIES or PORT_TAKEN not in new_lines:
                    raise
                subprocesses.stop(self._superlink, self.home)
                continue
            return port
        raise AssertionError("the last attempt returns or raises")

    def _wait_until_it_listens(self, host: str, port: int, ca: Path) -> None:
        """Wait until a TLS server with a certificate of this authority answers; a stranger on the port does not count.

        Raises:
            RunError: if it does not within `START_SECONDS`, or a process has ended.
        """
        context = ssl.create_default_context(cafile=ca)
        context.check_hostname = False  # it may be certified under other names than this address
        end = time.monotonic() + START_SECONDS
        while True:
            signals.check()
            self.check()
            try:
                with socket.create_connection((host, port), timeout=5.0) as plain, context.wrap_socket(plain):
                    return
            except OSError as error:
                if time.monotonic() > end:
                    said = subprocesses.last_lines(self.log)
                    raise RunError(
                        f"{host}:{port}: expected our server there within {START_SECONDS:.0f} s, got {error}; {said}"
                    ) from None
            time.sleep(0.1)

    def register(self, keys: Mapping[str, Path]) -> None:
        """Let the owners of these public keys in. A reply of a node is known to be of the client with its key.

        Raises:
            RunError: if Flower refuses a key.
        """
        commands = [
            ["supernode", "register", str(path.resolve()), FEDERATION, "--format", "json"] for path in keys.values()
        ]
        for client_id, output in zip(keys, self._flwr(commands), strict=True):
            self.nodes[client_id] = int(output["node-id"])

    def run(self) -> None:
        """Start the relay's run.

        Raises:
            RunError: if Flower refuses it.
        """
        self._flwr([["run", str(self._bundle), FEDERATION, "--format", "json"]])

    def check(self) -> None:
        """Check that its processes are running.

        Raises:
            RunError: if one has ended.
        """
        for name, child in (("Flower's SuperLink", self._superlink), ("the reverse proxy", self._proxy)):
            if child is not None and (code := child.poll()) is not None:
                reason = subprocesses.exit_reason(self.log)
                raise RunError(f"{name} ended with exit code {code}: {reason}; is network.port taken?")

    def close(self) -> None:
        """End it and all processes that it started."""
        if self._proxy is not None:
            subprocesses.stop(self._proxy)
        if self._superlink is not None:
            subprocesses.stop(self._superlink, self.home)

    def _flwr(self, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Run commands of Flower's command line in one process.

        Returns:
            The JSON output of each.
        """
        result = subprocess.run(
            [sys.executable, "-m", "fl_lightning.network.flower.flwr_commands", json.dumps(commands)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=self.home,
            check=False,
        )
        outputs = _json_objects(result.stdout)
        succeeded = len(outputs) == len(commands) and all(output.get("success") for output in outputs)
        if result.returncode != 0 or not succeeded:
            text = " ".join((result.stdout + " " + result.stderr).split())[-600:]
            raise RunError(f"flwr {commands[0][0]}: exit code {result.returncode}: {text}")
        return outputs


def _json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, in order, with any text between them."""
    objects, decoder, start = [], json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            objects.append(value)
        except ValueError:
            end = start + 1
        start = text.find("{", end)
    return objects


def check_flower() -> None:
    """Check that Flower is installed, in a version whose commands are known.

    Raises:
        InputError: if it is not; the message says how to install it.
    """
    from importlib.metadata import PackageNotFoundError, version

    fix = "pip install 'fl_lightning[flower]'"
    try:
        installed = version("flwr")
    except PackageNotFoundError as error:
        raise InputError(f"server and client: expected flwr>=1.41,<1.43, got no installation; {fix}") from error
    if not (1, 41) <= tuple(int(part) for part in installed.split(".")[:2]) < (1, 43):
        raise InputError(f"flwr: expected version >=1.41,<1.43, got {installed}; {fix}")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
