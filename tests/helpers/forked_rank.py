"""Lets a run fork its further processes, which `fl_lightning.launch` would start as new interpreters.

A fork has the imports of the first process; a new interpreter needs ten seconds of CPU time for them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

from fl_lightning import launch
from fl_lightning.cli import main


class ForkedRank:
    """As much of `subprocess.Popen` as `launch.started` uses: a fork that runs ``[…, "-m", "fl_lightning", *argv]``."""

    def __init__(self, command, env, stdin):
        assert command[:3] == [sys.executable, "-m", "fl_lightning"]
        assert stdin == subprocess.PIPE
        self._lock, self.returncode = threading.Lock(), None
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.dup2(reading, 0)
            os.close(reading)
            os.close(writing)
            _run(command[3:], env)
        os.close(reading)  # the other end stays open until this process ends, however it ends

    def wait(self, timeout=None):
        end = time.monotonic() + (timeout or float("inf"))
        while True:
            with self._lock:
                if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
                    self.returncode = os.waitstatus_to_exitcode(ended[1])
            if self.returncode is not None:
                return self.returncode
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.02)

    def kill(self):
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.returncode is None:
                os.kill(self.pid, signal.SIGKILL)


def _run(argv, env):
    """Never returns."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(env)
        code = main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(argv):
    """Run the command line with such forks; its exit code."""
    launch.subprocess = SimpleNamespace(
        Popen=ForkedRank, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    return main(argv)
