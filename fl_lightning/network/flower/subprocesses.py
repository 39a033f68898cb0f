"""Child processes that end with this one, however it ends, and take their own children along.

Each child leads a process group of its own, so that Ctrl-C reaches this process alone, and gets a SIGTERM from the
kernel when this process dies. Flower's ``flower-superexec`` leaves its parent's group: what carries our ``FLWR_HOME``
in its environment is ours and is ended, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HOME = "FLWR_HOME"
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def flower_environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of Flower's processes: a home of their own, no telemetry, no updates, this Python first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PATH": path, HOME: str(home), **more}


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a child whose output goes to a file. To be called by a thread that lasts as long as the child shall."""
    parent = os.getpid()

    def bind() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it has died already
                os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=bind,
        )


def stop(child: subprocess.Popen[bytes], home: Path | None = None) -> None:
    """End a child, its process group, and whatever else carries `home`."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if home is not None:
        sweep(home)


def sweep(home: Path) -> None:
    """End all processes that carry this ``FLWR_HOME``, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in (pids := carrying(home)):
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        end = time.monotonic() + GRACE / 2
        while pids and carrying(home) and time.monotonic() < end:
            time.sleep(0.05)


def carrying(home: Path) -> list[int]:
    """Ids of the processes, but for this one, whose environment names `home` as ``FLWR_HOME``."""
    wanted, found = f"{HOME}={home}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid() and wanted in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log, on one line."""
    with contextlib.suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(" ".join(line.split()) for line in text[-lines:] if line.strip())[-600:]
    return ""


def reason(log: Path) -> str:
    """What Flower said when it gave up, on one line; the last lines where it said nothing of the kind."""
    with contextlib.suppress(OSError):
        text = re.sub(r"\x1b\[\d+m", "", log.read_text(encoding="utf-8", errors="replace")).splitlines()
        ends = [number for number, line in enumerate(text) if "Exit Code:" in line]
        if ends:
            return " ".join(" ".join(text[ends[-1] + 1 : ends[-1] + 4]).split())[:600]
    return tail(log)


def free_port() -> int:
    """A port on the loopback interface that nobody uses at the moment."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
