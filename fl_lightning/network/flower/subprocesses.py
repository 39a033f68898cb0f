"""Child processes that end with this one, however it ends, and take their own children along.

Each child leads its own process group, so that Ctrl-C reaches only this process, and gets a SIGTERM from the kernel
when this process dies. Flower's ``flower-superexec`` leaves its parent's group: every process with our ``FLWR_HOME`` in
its environment is ours, and is ended, too.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from fl_lightning.errors import RunError

HOME_VARIABLE = "FLWR_HOME"
GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL."""
EPHEMERAL_PORTS = 32768
"""Linux gives outgoing connections ports from here on."""

BIND_TO_PARENT = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)}, 0, 0, 0)  # PR_SET_PDEATHSIG; it survives exec
if os.getppid() != int(sys.argv[1]):  # the parent died before that
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Python that becomes the command after asking the kernel for a signal when the parent dies.

A child with preexec_fn would run Python code after a fork of a process with threads, which may deadlock."""


def flower_environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of Flower's processes: a private home, no telemetry, no update checks, this Python first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PATH": path, HOME_VARIABLE: str(home), **more}


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a child whose output is appended to a file.

    The kernel ends the child with the thread that started it, so call this from one that lasts as long.

    Raises:
        RunError: if there is no such program.
    """
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise RunError(f"{command[0]}: expected it on the PATH, got nothing; pip install 'fl_lightning[flower]'")
    command = [program, *command[1:]]
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", BIND_TO_PARENT, str(os.getpid()), *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(child: subprocess.Popen[bytes], home: Path | None = None) -> None:
    """End a child, its process group, and every process with this ``FLWR_HOME``."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if home is not None:
        stop_all(home)


def stop_all(home: Path) -> None:
    """End all processes with this ``FLWR_HOME``: SIGTERM, then SIGKILL."""
    processes = processes_with_home(home)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(processes, GRACE_SECONDS / 2)
    for process in processes_with_home(home):  # those, too, that were started since
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(GRACE_SECONDS)


def processes_with_home(home: Path) -> list[psutil.Process]:
    """The processes, except this one, whose environment has `home` as ``FLWR_HOME``."""
    return [
        process
        for process in psutil.process_iter(["environ"])  # None where it may not be read
        if process.pid != os.getpid() and (process.info["environ"] or {}).get(HOME_VARIABLE) == str(home)
    ]


def last_lines(log: Path, start: int = 0, count: int = 5) -> str:
    """The last lines of a log, on one line; `start` is the byte at which to begin."""
    lines = _lines(log, start)
    return " | ".join(" ".join(line.split()) for line in lines[-count:] if line.strip())[-600:]


def exit_reason(log: Path, start: int = 0) -> str:
    """Flower's reason for an exit in its log from byte `start` on, on one line; the last lines if it gives none."""
    lines = _lines(log, start)
    exits = [index for index, line in enumerate(lines) if "Exit Code:" in line]
    if exits:
        return " ".join(" ".join(lines[exits[-1] + 1 : exits[-1] + 4]).split())[:600]
    return last_lines(log, start)


def _lines(log: Path, start: int) -> list[str]:
    """The lines of a log without colours; none if it cannot be read."""
    with contextlib.suppress(OSError):
        return re.sub(r"\x1b\[\d+m", "", log.read_bytes()[start:].decode("utf-8", "replace")).splitlines()
    return []


def free_port() -> int:
    """A port on the loopback interface that is free now.

    Another process may take it before it is used: the caller tries again with another one. It is below the ports of
    outgoing connections, which would take one sooner or later.
    """
    for _ in range(100):
        port = random.SystemRandom().randrange(10_000, EPHEMERAL_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RunError(f"expected a free port from 10000 to {EPHEMERAL_PORTS - 1} on 127.0.0.1, got none in 100 tries")
