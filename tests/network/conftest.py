"""Fixtures of the tests of a run between machines: commands as processes on the loopback interface."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
from forked import Forked

from fl_lightning.launch import reserve_port

HAS_FLOWER = importlib.util.find_spec("flwr") is not None


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="flwr is not installed: pip install 'fl_lightning[flower]'")
    for item in items:
        if item.get_closest_marker("network") and not HAS_FLOWER:
            item.add_marker(skip)


class Machines:
    """Commands of a run between machines, each a process with its log in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self._port_holder, self.port = reserve_port()
        self.processes = {}

    def server(self, *arguments):
        self._start("server", ["server", *self._options("out"), *arguments])

    def site(self, client_id):
        department, client = client_id.split("/")
        whose = ["--department", department, "--client", client]
        self._start(client_id, ["client", *self._options("of_sites"), *whose])

    def _options(self, output):
        return ["--config", "run.yaml", f"--network.port={self.port}", f"--output={output}"]

    def _start(self, name, arguments):
        log = self.folder / f"{name.replace('/', '.')}.log"
        self.processes[name] = Forked(arguments, self.folder, log, FL_TEST_FOLDER=str(self.folder), COLUMNS="400")

    def log(self, name):
        return self.processes[name].output()

    def wait_for(self, name, text, count=1):
        """Wait until a process has logged a text."""
        self.processes[name].wait_for(text, 240.0, count)

    def wait(self, name, timeout):
        """The exit code of a process; it is killed if it takes longer."""
        return self.processes[name].finish(timeout)[0]

    def kill(self, name):
        """As the kernel does when memory is short: without a chance to clean up."""
        self.processes[name].send_signal(signal.SIGKILL)
        assert self.wait(name, 10) == -signal.SIGKILL

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
        self._port_holder.close()
        running = [process for process in self.processes.values() if process.process.is_alive()]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.finish(30)
        for pid in self._flower_pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path):
    machines = Machines(tmp_path)
    yield machines
    machines.close()
