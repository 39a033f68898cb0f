"""Fixtures of the tests of a run between machines: commands as processes on the loopback interface."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
from fork_server import ForkServer

HAS_FLOWER = importlib.util.find_spec("flwr") is not None


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="flwr is not installed: pip install 'fl_lightning[flower]'")
    for item in items:
        if item.get_closest_marker("network") and not HAS_FLOWER:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def fork_server():
    """Processes of fl_lightning without the seconds of its imports."""
    server = ForkServer()
    yield server
    server.close()


class Machines:
    """Commands of a run between machines, each a process with its log in a folder."""

    def __init__(self, folder, fork_server):
        from fl_lightning.network.flower.subprocesses import free_port

        self.folder, self.port, self._fork_server = folder, free_port(), fork_server
        self.pids = {}

    def server(self, *arguments):
        self._start("server", ["server", *self._options("out"), *arguments])

    def site(self, client_id):
        department, client = client_id.split("/")
        whose = ["--department", department, "--client", client]
        self._start(client_id, ["client", *self._options("of_sites"), *whose])

    def _options(self, output):
        return ["--config", "run.yaml", f"--network.port={self.port}", f"--output={output}"]

    def _start(self, name, arguments):
        self.pids[name] = self._fork_server.start(self.folder, self._log_path(name), arguments)

    def _log_path(self, name):
        return self.folder / f"{name.replace('/', '.')}.log"

    def log(self, name):
        path = self._log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, name, text, timeout=240.0, count=1):
        """Wait until a process has logged a text."""
        end = time.monotonic() + timeout
        while self.log(name).count(text) < count:
            assert time.monotonic() < end, f"{name}: no {text!r} in {timeout:.0f} s: {self.log(name)[-3000:]}"
            assert self._fork_server.wait(self.pids[name]) is None, f"{name} ended: {self.log(name)[-3000:]}"
            time.sleep(0.1)

    def wait(self, name, timeout):
        """The exit code of a process."""
        return self._fork_server.wait(self.pids[name], timeout)

    def kill(self, name):
        """As the kernel does when memory is short: without a chance to clean up."""
        pid = self.pids.pop(name)
        os.kill(pid, signal.SIGKILL)
        assert self._fork_server.wait(pid, 10) == -signal.SIGKILL

    def left_over(self, timeout=30.0):
        """{id: command line} of the processes of Flower's that are still there."""
        end = time.monotonic() + timeout
        while (pids := self._flower_pids()) and time.monotonic() < end:
            time.sleep(0.2)
        return {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in pids}

    def _flower_pids(self):
        mark, pids = f"FL_TEST_FOLDER={self.folder}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_zombie = "Z" in (process / "stat").read_text()[:64]
                if not is_zombie and mark in (process / "environ").read_bytes().split(b"\0"):
                    pids.append(int(process.name))
        return pids

    def close(self):
        for number, timeout in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0)):
            running = [pid for pid in self.pids.values() if self._fork_server.wait(pid) is None]
            for pid in running:
                os.kill(pid, number)
            for pid in running:
                self._fork_server.wait(pid, timeout)
        for pid in self._flower_pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path, fork_server):
    machines = Machines(tmp_path, fork_server)
    yield machines
    machines.close()
