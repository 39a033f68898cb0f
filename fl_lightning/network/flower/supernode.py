"""Flower's side of a site as a child process: a SuperNode, which starts the ClientApp for each message."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fl_lightning.errors import RunError
from fl_lightning.network.flower import subprocesses
from fl_lightning.network.flower.local_socket import FOLDER_VARIABLE, SocketFolder

log = logging.getLogger(__name__)

STABLE_SECONDS = 30.0
"""A SuperNode that runs for this long was accepted by the server."""
RETRY_DELAYS = (1.0, 2.0, 5.0, *8 * (10.0,))
"""Seconds before each new try with one that ends sooner: the server may be about to register its keys, or another
process took the node's port, or a killed process of this site counts as connected for another 60 s (Flower's
heartbeat)."""


class SuperNode:
    """A running SuperNode; `close` ends it and all processes that it started.

    Args:
        folder: where the ClientApp finds the site's socket, and Flower its home.
        ca: the authority's certificate.
        key: the site's private key.
        address: host and port of the server.
        department: for people who read Flower's logs.
        client: likewise.
    """

    def __init__(self, folder: SocketFolder, ca: Path, key: Path, address: str, department: str, client: str) -> None:
        self.home, self.log = folder.path / "flower", folder.path / "supernode.log"
        self.home.mkdir()
        self._environment = subprocesses.flower_environment(
            self.home, **{FOLDER_VARIABLE: str(folder.path), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        )
        self._command = [
            "flower-supernode",
            *("--superlink", address, "--root-certificates", str(ca), "--auth-supernode-private-key", str(key)),
            *("--node-config", f'department="{department}" client="{client}"'),
        ]
        self._num_failures = 0
        self._start()

    def _start(self) -> None:
        command = [*self._command, "--port", str(subprocesses.free_port())]
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._child, self._started = subprocesses.start(command, self._environment, self.log), time.monotonic()
        self._restart_at: float | None = None

    def delivered(self) -> None:
        """Note that it has delivered a message, so the server has accepted it: earlier failures no longer count."""
        self._num_failures = 0

    def check(self) -> None:
        """Check that it is running, and start it again if it is not.

        Raises:
            RunError: if it ended soon after each start: the server does not know the key, or is another server.
        """
        if (code := self._child.poll()) is None:
            return
        if self._restart_at is not None:
            if time.monotonic() > self._restart_at:
                self._start()
            return
        reason = subprocesses.exit_reason(self.log, self._log_start)
        was_stable = time.monotonic() - self._started > STABLE_SECONDS
        self._num_failures = 0 if was_stable else self._num_failures + 1
        if self._num_failures > len(RETRY_DELAYS):
            raise RunError(
                "Flower's SuperNode: expected a server that knows this site's key and has a certificate of the "
                f"authority in network.certificates, got exit code {code} ({reason}) at start {self._num_failures}"
            )
        delay = RETRY_DELAYS[max(0, self._num_failures - 1)]
        log.warning("Flower's SuperNode ended with exit code %d (%s); next start in %.0f s", code, reason, delay)
        subprocesses.stop(self._child, self.home)
        self._restart_at = time.monotonic() + delay

    def close(self) -> None:
        """End it and all processes that it started."""
        subprocesses.stop(self._child, self.home)
