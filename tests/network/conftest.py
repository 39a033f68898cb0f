"""What the tests of a run between machines share: Flower's processes on the loopback interface, started and ended."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HAS_FLOWER = importlib.util.find_spec("flwr") is not None


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="flwr is not installed: pip install 'fl_lightning[flower]'")
    for item in items:
        if "network" in item.keywords and item.get_closest_marker("network") and not HAS_FLOWER:
            item.add_marker(skip)


def of_this_test(folder):
    """Ids of living processes whose environment says that a test started them for this folder, or their children."""
    wanted, found = f"FL_TEST_FOLDER={folder}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (place / "environ").read_bytes().split(b"\0") and "Z" not in (place / "stat").read_text()[:64]:
                found.append(int(place.name))
        except OSError:
            continue
    return found


class Machines:
    """Commands of a run between machines, each a process with a log of its own under a folder."""

    def __init__(self, folder):
        from fl_lightning.network.flower.subprocesses import free_port

        self.folder, self.port = folder, free_port()
        self.processes = {}

    def start(self, name, *command):
        environment = {**os.environ, "FL_TEST_FOLDER": str(self.folder), "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.processes[name]

    def server(self, *arguments):
        return self.start("server", "-m", "fl_lightning", *self.of_server(*arguments))

    def site(self, client_id, *arguments):
        return self.start(client_id.replace("/", "."), "-m", "fl_lightning", *self.of_site(client_id, *arguments))

    def together(self, server=(), sites=()):
        """Server and sites at once, forked from one process; its log ends with {log file: exit code}."""
        commands = [["server.log", *self.of_server(*server)]]
        commands += [[f"{c.replace('/', '.')}.log", *self.of_site(c)] for c in sites]
        return self.start("together", str(Path(__file__).with_name("preloaded.py")), json.dumps(commands))

    def of_server(self, *arguments):
        return ["server", "--config", "run.yaml", f"--network.port={self.port}", "--output=out", *arguments]

    def of_site(self, client_id, *arguments):
        department, client = client_id.split("/")
        known = ["client", "--config", "run.yaml", f"--network.port={self.port}", "--output=of_sites"]
        return [*known, "--department", department, "--client", client, *arguments]

    def log(self, name):
        path = self.folder / f"{name.replace('/', '.')}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, name, text, timeout=90.0, count=1):
        end = time.monotonic() + timeout
        while self.log(name).count(text) < count:
            assert time.monotonic() < end, f"{name}: no {text!r} in {timeout:.0f} s: {self.log(name)[-3000:]}"
            time.sleep(0.1)

    def kill(self, name):
        """As the kernel does when memory is short: no goodbye."""
        process = self.processes.pop(name.replace("/", "."))
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def left_over(self, timeout=15.0):
        end = time.monotonic() + timeout
        while (found := of_this_test(self.folder)) and time.monotonic() < end:
            time.sleep(0.2)
        return {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in found}


@pytest.fixture
def machines(tmp_path):
    found = Machines(tmp_path)
    yield found
    found.close()
    for pid in of_this_test(tmp_path):
        os.kill(pid, signal.SIGKILL)
