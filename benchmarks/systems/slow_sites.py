"""A buffered run between machines in which a site is stopped, and the server killed: who waits, and for how long.

    python -m benchmarks.systems.slow_sites --stop-seconds 600

Server and four sites (two departments of two) are processes on the loopback interface, with Flower, TLS and node
authentication. All processes of one site are stopped (SIGSTOP) as by a laptop that is closed, and continued (SIGCONT);
then the server gets SIGKILL and is resumed; then a site gets SIGKILL and is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from fl_lightning.network.flower.subprocesses import free_port
from fl_lightning.network.tls import make_certificates

SITES = ("finance/client_0", "finance/client_1", "hr/client_0", "hr/client_1")
STOPPED, RESTARTED = "hr/client_1", "finance/client_1"
MARK = "FL_SLOW_SITES"
RUN = {
    "data": {"root": "bundled:departments", "max_records": 8},
    "training": {"learning_rate": 0.005},
    "evaluation": {"every": 1000, "records": 8},
    "federation": {
        "rounds": 100_000,
        "combiner": "fedavg",
        "client_clusters": {"num_clusters": 1},
        "dept_clusters": {"enabled": False},
        "schedule": {"mode": "buffered", "buffer": 1},
    },
    "retention": {"client_exports": 1},
    "network": {"join_timeout": 600.0},
}
STEP = re.compile(r"round (\d+): (\w+) steps with")


class Machines:
    """The processes of a run, each with its log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
        make_certificates(folder / "certs", list(SITES))

    def start(self, name: str, *arguments: str) -> None:
        department, _, client = name.partition("/")
        role = ["client", "--department", department, "--client", client] if client else ["server"]
        common = ["--config", "run.yaml", f"--network.port={self.port}", f"--output={'sites' if client else 'out'}"]
        with self.log_file(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "fl_lightning", *role, *common, *arguments],
                cwd=self.folder, env={**os.environ, MARK: f"{self.folder}:{name}", "COLUMNS": "300"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '.')}.log"

    def log(self, name: str) -> str:
        path = self.log_file(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def pids(self, name: str) -> list[int]:
        """All processes of a command, Flower's included."""
        mark, pids = f"{MARK}={self.folder}:{name}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    pids.append(int(process.name))
        return pids

    def signal(self, name: str, number: int) -> None:
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def kill(self, name: str) -> None:
        """The command only, as the kernel does when memory is short."""
        self.processes[name].kill()
        self.processes[name].wait()

    def steps(self) -> list[tuple[int, str]]:
        """(round, department) of every step in the server's log."""
        return [(int(number), name) for number, name in STEP.findall(self.log("server"))]

    def fits_taken(self) -> Iterator[tuple[int, str]]:
        """(round, client_id) of every update that a round has taken."""
        for path in self.folder.glob("out/version_0/cluster_metadata/round_*_aggregation.json"):
            with contextlib.suppress(ValueError, OSError):
                for client_id in json.loads(path.read_text())["staleness"]:
                    yield int(path.name.split("_")[1]), client_id

    def close(self) -> None:
        for name in self.processes:
            self.signal(name, signal.SIGCONT)
            self.signal(name, signal.SIGTERM)
        end = time.monotonic() + 30
        while any(self.pids(name) for name in self.processes) and time.monotonic() < end:
            time.sleep(0.5)
        for name in self.processes:
            self.signal(name, signal.SIGKILL)


def seconds_until(reached: Callable[[], object], limit: float = 600.0) -> float:
    begin = time.monotonic()
    while not reached():
        if time.monotonic() - begin > limit:
            raise TimeoutError(f"expected it within {limit:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stop-seconds", type=float, default=600.0, help="how long the site is stopped")
    parser.add_argument("--more-rounds", type=int, default=80, help="steps after the server is killed")
    parser.add_argument("--folder", type=Path, help="for logs; a temporary one by default")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines = Machines(folder)
        stack.callback(machines.close)
        machines.start("server")
        seconds_until(lambda: "listening on" in machines.log("server"))
        for client_id in SITES:
            machines.start(client_id)
        print(
            f"from the sites' start to 8 steps: {seconds_until(lambda: len(machines.steps()) >= 8):.0f} s", flush=True
        )

        before = len(machines.steps())
        machines.signal(STOPPED, signal.SIGSTOP)
        time.sleep(options.stop_seconds)
        made = machines.steps()[before:]
        by_department = {name: sum(d == name for _, d in made) for name in ("finance", "hr")}
        print(f"{STOPPED} stopped for {options.stop_seconds:.0f} s: the others made {len(made)} steps, {by_department}",
              flush=True)  # fmt: skip

        last = made[-1][0] if made else 0
        machines.signal(STOPPED, signal.SIGCONT)
        back = seconds_until(lambda: any(r > last + 1 and c == STOPPED for r, c in machines.fits_taken()))
        print(f"SIGCONT to a step with its update: {back:.0f} s", flush=True)

        seconds_until(lambda: len(machines.steps()) > len(made) + before + 4)
        before = len(machines.steps())
        machines.kill("server")
        begin = time.monotonic()
        rounds = machines.steps()[-1][0] + options.more_rounds
        machines.start("server", "--resume", "last", f"--federation.rounds={rounds}")
        listening = seconds_until(lambda: machines.log("server").count("listening on") > 1)
        seconds_until(lambda: len(machines.steps()) > before)
        print(f"kill -9 of the server to the next step: {time.monotonic() - begin:.0f} s, of which {listening:.0f} s "
              "until it listens", flush=True)  # fmt: skip
        seconds_until(lambda: all(machines.log(c) != "" for c in SITES))

        now = machines.steps()[-1][0]
        machines.kill(RESTARTED)
        begin = time.monotonic()
        machines.start(RESTARTED)
        seconds_until(lambda: any(r > now + 1 and c == RESTARTED for r, c in machines.fits_taken()))
        print(f"kill -9 of {RESTARTED} to a step with its update: {time.monotonic() - begin:.0f} s", flush=True)
        codes = {name: machines.processes[name].wait(900) for name in ("server", *SITES)}
        numbers = [number for number, _ in machines.steps()]
        print(f"exit codes {codes}; last round {numbers[-1]} of {rounds}", flush=True)
        taken = sorted(machines.fits_taken())
        print(f"updates taken: { {c: sum(c == who for _, who in taken) for c in SITES} }", flush=True)


if __name__ == "__main__":
    main()
