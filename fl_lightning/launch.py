"""Further processes of a run on this machine: copies of the command, started before anything slow is imported.

Fabric can start them itself, but only after this process has spent its seconds on importing Lightning; started here
they import at the same time. What each process is to be comes from the environment variables that Fabric (and torchrun)
use: LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, NODE_RANK.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

CHILD = "FL_LIGHTNING_CHILD"
GRACE = 10.0
"""Seconds in which the first process may find out by itself, and say better, why another one has gone."""


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


@contextlib.contextmanager
def started(count: int, argv: Sequence[str]) -> Iterator[None]:
    """While this block runs, ``count − 1`` further processes run ``python -m fl_lightning argv``.

    Nothing is started where the environment says that somebody else did (torchrun, SLURM, this function). The others
    end with this process, however it ends: they watch their standard input.
    """
    if CHILD in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if count == 1 or "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    os.environ.update(group, LOCAL_RANK="0")
    children = []
    over = threading.Event()
    try:
        for rank in range(1, count):
            environment = {**os.environ, "LOCAL_RANK": str(rank), CHILD: "1"}
            command = [sys.executable, "-m", "fl_lightning", *argv]
            children.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
        for child in children:
            threading.Thread(target=_watch, args=(child, over), daemon=True).start()
        yield
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=GRACE)
    finally:
        over.set()
        for child in children:
            child.kill()
            child.wait()
        for name in (*group, "LOCAL_RANK"):
            os.environ.pop(name, None)


def _end_with_parent() -> None:
    while os.read(0, 1024):  # and not sys.stdin, whose lock would be held when the interpreter shuts down
        pass
    os._exit(1)


def _watch(child: subprocess.Popen[bytes], over: threading.Event) -> None:
    """End a run that waits for a process which has gone."""
    code = child.wait()
    if code == 0 or over.wait(GRACE):
        return
    print(f"failed: another process of the run ended with exit code {code}; its message is above", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
