"""Flower's side of a site as a child process: a SuperNode, which starts the ClientApp for each message.

A SuperNode waits for the reply of its ClientApp without limit (``flwr.supernode.start_client_internal``). If that never
comes, it neither takes another message nor ends, even if another server has taken the place of the one it knows. Only
its log tells, so that is read here.
"""

from __future__ import annotations

import contextlib
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
STUCK_SECONDS = 120.0
"""A SuperNode whose ClientApp has had a message for this long without a word to the site is started again."""
LOST_SECONDS = 30.0
"""Likewise one that its server does not know any more, or that is about to end; it should end by itself."""

RECEIVED, SENDING = b"Received successfully", (b"Sending: ", b"Failed to send message")
"""In Flower's log: a message is there for the ClientApp; a reply of it is on its way."""
LOST = {
    b"Heartbeat failed unexpectedly": "its server does not know it any more",
    b"Exit Code:": "it was about to end and did not",
}
"""In Flower's log: signs that no message comes any more, and what they mean."""


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
        self._active_at = time.monotonic()
        self._start()

    def _start(self) -> None:
        command = [*self._command, "--port", str(subprocesses.free_port())]
        self._log_start = self._log_read = self.log.stat().st_size if self.log.exists() else 0
        self._received_at: float | None = None
        self._lost_at: float | None = None
        self._lost_reason = ""
        self._child, self._started = subprocesses.start(command, self._environment, self.log), time.monotonic()
        self._restart_at: float | None = None

    def delivered(self) -> None:
        """Note that it has delivered a message, so the server has accepted it: earlier failures no longer count."""
        self._num_failures = 0
        self._active_at = time.monotonic()

    def answered(self) -> None:
        """Note that the site has answered a message, after whatever time: now the SuperNode must send the reply."""
        self._active_at = time.monotonic()

    def check(self) -> None:
        """Check that it is running and not stuck, and start it again otherwise.

        Raises:
            RunError: if it ended soon after each start: the server does not know the key, or is another server.
        """
        if (code := self._child.poll()) is None:
            if (reason := self._stuck_reason()) is not None:
                log.warning("Flower's SuperNode is started again: %s", reason)
                self._restart_after(RETRY_DELAYS[0])
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
        self._restart_after(delay)

    def _restart_after(self, seconds: float) -> None:
        """End what is left of it, and let `check` start it again after some seconds."""
        subprocesses.stop(self._child, self.home)
        self._restart_at = time.monotonic() + seconds

    def _stuck_reason(self) -> str | None:
        """Why no message can come from it any more although it is running; None if one can."""
        self._read_log()
        idle = time.monotonic() - self._active_at
        if self._lost_at is not None and min(idle, time.monotonic() - self._lost_at) > LOST_SECONDS:
            return self._lost_reason
        if self._received_at is not None and min(idle, time.monotonic() - self._received_at) > STUCK_SECONDS:
            return f"it has had a message for more than {STUCK_SECONDS:.0f} s, and neither asks the site nor replies"
        return None

    def _read_log(self) -> None:
        """Read the complete lines that Flower has logged since the last call."""
        new = b""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(self._log_read)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._log_read += len(complete)
        for line in complete.splitlines():
            if RECEIVED in line:
                self._received_at = time.monotonic()
            elif any(text in line for text in SENDING):
                self._received_at = None
            for text, meaning in LOST.items():
                if text in line and self._lost_at is None:
                    self._lost_at, self._lost_reason = time.monotonic(), meaning

    def close(self) -> None:
        """End it and all processes that it started."""
        subprocesses.stop(self._child, self.home)
