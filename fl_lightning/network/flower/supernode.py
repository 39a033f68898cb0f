"""Flower's side of a site as a child of its process: a SuperNode, which starts the ClientApp for each message."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fl_lightning.errors import RunError
from fl_lightning.network.flower import subprocesses
from fl_lightning.network.flower.local_socket import VARIABLE, SocketFolder

log = logging.getLogger(__name__)

STABLE_SECONDS = 30.0
"""A SuperNode that lasts for so many seconds had been let in."""
RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
"""Seconds before another try, for one that ends sooner: the server may be about to register its keys, or not know yet
that an earlier process of this site has gone."""


class SuperNode:
    """A running SuperNode; `close` ends it and all that it started.

    Args:
        folder: where the ClientApp finds the site's socket, and Flower its home.
        ca: the authority's certificate.
        key: the site's private key.
        address: host and port of the server.
        department: named in the node's config, for people who look at Flower's logs.
        client: likewise.
    """

    def __init__(self, folder: SocketFolder, ca: Path, key: Path, address: str, department: str, client: str) -> None:
        self.home, self.log = folder.path / "flower", folder.path / "supernode.log"
        self.home.mkdir()
        self._environment = subprocesses.flower_environment(
            self.home, **{VARIABLE: str(folder.path), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        )
        self._command = [
            "flower-supernode",
            *("--superlink", address, "--root-certificates", str(ca), "--auth-supernode-private-key", str(key)),
            *("--node-config", f'department="{department}" client="{client}"'),
        ]
        self._failures = 0
        self._start()

    def _start(self) -> None:
        command = [*self._command, "--port", str(subprocesses.free_port())]
        self._child, self._started = subprocesses.start(command, self._environment, self.log), time.monotonic()
        self._again: float | None = None

    def check(self) -> None:
        """Check that it is still there, and start it again where it is not.

        Raises:
            RunError: if it ends at once every time: the server does not know the key, or is another one.
        """
        if (code := self._child.poll()) is None:
            return
        said = subprocesses.reason(self.log)
        if self._again is None:
            self._failures = 0 if time.monotonic() - self._started > STABLE_SECONDS else self._failures + 1
            if self._failures > len(RETRY_DELAYS):
                raise RunError(
                    f"Flower's SuperNode ended {self._failures} times, now with exit code {code}: {said}; wanted a "
                    "server that knows this site's key and shows a certificate of the authority in network.certificates"
                )
            pause = RETRY_DELAYS[max(0, self._failures - 1)]
            log.warning("Flower's SuperNode ended with exit code %d (%s); again in %.0f s", code, said, pause)
            subprocesses.stop(self._child, self.home)
            self._again = time.monotonic() + pause
        elif time.monotonic() > self._again:
            self._start()

    def close(self) -> None:
        """End it and all that it started."""
        subprocesses.stop(self._child, self.home)
