"""Further processes of a run on this machine: copies of the command, started before anything slow is imported.

Fabric could start them itself, but only after this process has spent seconds on importing Lightning; started here, they
import at the same time. Each process gets its role from the environment variables of Fabric and torchrun: LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR, MASTER_PORT, NODE_RANK.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

CHILD = "FL_LIGHTNING_CHILD"
_NO_COMPILER = "TORCHDYNAMO_DISABLE"
GRACE_SECONDS = 10.0
"""Time for the first process to notice by itself that another one has ended; its message says more."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import libraries faster: without collecting garbage, of which imports make none, and without torch's compiler.

    bitsandbytes, which PEFT imports, has four functions compiled, for devices for which it has no kernels. This alone
    would import torch's compiler, a tenth of all CPU time of the imports. These four stay as they are written; what is
    compiled later is compiled.

    Example:
        >>> with importing():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    was_enabled, compiler = gc.isenabled(), os.environ.get(_NO_COMPILER)
    gc.disable()
    os.environ[_NO_COMPILER] = "1"
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        os.environ.pop(_NO_COMPILER)
        if compiler is not None:
            os.environ[_NO_COMPILER] = compiler


def is_first() -> bool:
    """Whether this process is the one that writes files and log lines."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


@contextlib.contextmanager
def started(count: int, argv: Sequence[str]) -> Iterator[None]:
    """While this block runs, ``count − 1`` further processes run ``python -m fl_lightning argv``.

    Nothing is started if the environment shows that the processes were started by torchrun, SLURM or this function. The
    others end with this process, however it ends, since they watch their standard input.
    """
    if CHILD in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if count == 1 or "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ:
        yield
        return
    port_holder, port = reserve_port()
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    os.environ.update(group, LOCAL_RANK="0")
    children = []
    finished = threading.Event()
    try:
        for rank in range(1, count):
            environment = {**os.environ, "LOCAL_RANK": str(rank), CHILD: "1"}
            command = [sys.executable, "-m", "fl_lightning", *argv]
            children.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
        for child in children:
            threading.Thread(target=_watch, args=(child, finished), daemon=True).start()
        yield
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=GRACE_SECONDS)
    finally:
        finished.set()
        for child in children:
            child.kill()
            child.wait()
        port_holder.close()
        for name in (*group, "LOCAL_RANK"):
            os.environ.pop(name, None)


def reserve_port() -> tuple[socket.socket, int]:
    """(a socket that keeps a port of the loopback address, that port).

    No other program gets the port while the socket is open. torch's rendezvous store can still listen on it: both set
    SO_REUSEADDR, and this socket never listens.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


def _end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held while the interpreter shuts down
        pass
    os._exit(1)


def _watch(child: subprocess.Popen[bytes], finished: threading.Event) -> None:
    """End this process, which may wait for the child for ever, if the child has failed."""
    code = child.wait()
    if code == 0 or finished.wait(GRACE_SECONDS):
        return
    print(f"failed: another process of the run ended with exit code {code}; its message is above", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
