"""A run between hosts that are network namespaces, over links with latency and loss; needs root, iproute2 and TUN.

    python -m benchmarks.systems.network_netns --sites 2 --delay 20 --loss 1

Each host holds the records of its one client alone. What is between the hosts delays every packet by half the round
trip and loses some. The adapters must be those of the same run in one process, and nothing must be left over.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from safetensors.torch import load_file

from fl_lightning import bundled
from fl_lightning.network.tls import make_certificates

NET = "10.77.0"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def sh(*command: object) -> None:
    """Run a command; an error ends the script."""
    subprocess.run([str(word) for word in command], check=True)


class Links(threading.Thread):
    """What lies between the hosts: takes packets from their TUN devices, loses some, delivers the others later.

    In place of netem, which not every kernel has; TCP sees the same, and what was lost is counted.

    Args:
        delay: seconds from host to host.
        loss: share of the packets that is lost.
    """

    def __init__(self, delay: float, loss: float) -> None:
        super().__init__(daemon=True)
        self.delay, self.loss, self.draw = delay, loss, random.Random(7)
        self.devices: dict[int, int] = {}
        self.passed = self.lost = 0

    def add(self, number: int, name: str) -> None:
        """A TUN device in a namespace, for the host of that number."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/ns/net") as here, open(f"/run/netns/{name}") as there:
            if libc.setns(there.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"eth0", IFF_TUN | IFF_NO_PI))
            finally:
                libc.setns(here.fileno(), 0)
        self.devices[number] = device

    def run(self) -> None:
        """Forward until the script ends."""
        waiting: list[tuple[float, int, int, bytes]] = []
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                *_, to, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):
                    os.write(self.devices[to], packet)
            pause = min(0.05, waiting[0][0] - now) if waiting else 0.05
            for device in select.select(list(self.devices.values()), [], [], max(0.0, pause))[0]:
                with contextlib.suppress(OSError):
                    packet = os.read(device, 65536)
                    to = packet[19]  # the last byte of an IPv4 packet's destination
                    if to not in self.devices:
                        continue
                    self.passed += 1
                    if self.draw.random() < self.loss:
                        self.lost += 1
                        continue
                    heapq.heappush(waiting, (time.monotonic() + self.delay, self.passed, to, packet))


@contextlib.contextmanager
def hosts(count: int, delay: float, loss: float) -> Iterator[tuple[list[str], Links]]:
    """Namespaces with the numbers from 1 as the last part of their addresses, and their links; removed at the end."""
    names = [f"fl{os.getpid()}-{k}" for k in range(1, count + 1)]
    links = Links(delay, loss)
    try:
        for number, name in enumerate(names, start=1):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
            links.add(number, name)
            sh("ip", "-n", name, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up", "mtu", "1500")
        links.start()
        yield names, links
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def start(host: str, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A command of fl_lightning on a host, with its log in the host's folder."""
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "fl_lightning", *arguments]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def adapters(run: Path) -> dict[str, dict]:
    return {p.parent.name: load_file(p) for p in run.glob("adapters/*/adapter_model.safetensors")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--delay", type=float, default=20.0, help="milliseconds from host to host and back")
    parser.add_argument("--loss", type=float, default=1.0, help="percent of packets")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = {
        "data": {"root": "data", "clients_per_dept": given.sites, "max_records": 8},
        "training": {"learning_rate": 0.005, "clients_at_once": 1},
        "federation": {"rounds": given.rounds, "client_clusters": {"num_clusters": 1}},
        "network": {"host": f"{NET}.1", "join_timeout": 300.0, "deadline": 300.0},
    }
    run["federation"]["dept_clusters"] = {"enabled": False}
    sites = [f"hr/client_{k}" for k in range(given.sites)]
    source = next(p for p in bundled.resolve("bundled:departments").iterdir() if p.name.startswith("hr"))
    with (
        tempfile.TemporaryDirectory() as place,
        hosts(1 + given.sites, given.delay / 2000, given.loss / 100) as (names, links),
    ):
        folder = Path(place)
        make_certificates(folder / "certs", sites, [f"{NET}.1"])
        homes = [folder / "server", *(folder / site.replace("/", ".") for site in sites), folder / "one"]
        for home in homes:
            home.mkdir()
            (home / "run.yaml").write_text(yaml.safe_dump(run))
        for site, home in zip(sites, homes[1:-1], strict=True):
            for target in (home, homes[-1]):
                shutil.copytree(source / site.split("/")[1], target / "data" / site)
            shutil.copytree(folder / "certs" / "sites" / site, home / "certs" / "sites" / site)
            shutil.copy(folder / "certs" / "ca.pem", home / "certs")
        shutil.copytree(folder / "certs", homes[0] / "certs")
        started = time.monotonic()
        server = start(names[0], homes[0], "server", "--config", "run.yaml", "--output", "out")
        clients = [
            start(name, home, "client", "--config", "run.yaml", "--department", "hr", "--client", site.split("/")[1])
            for name, home, site in zip(names[1:], homes[1:-1], sites, strict=True)
        ]
        codes = [process.wait(900) for process in (server, *clients)]
        seconds = time.monotonic() - started
        if any(codes):
            for home in homes[:-1]:
                print(home.name, (home / "log").read_text()[-1500:])
            return 1
        sh(sys.executable, "-c", f"import os; os.chdir({str(homes[-1])!r}); from fl_lightning.cli import main; "
           "main(['fit', '--config', 'run.yaml', '--output', 'out'])")  # fmt: skip
        first, second = (adapters(home / "out" / "version_0") for home in (homes[0], homes[-1]))
        off = max(float((first[d][n] - second[d][n]).abs().max()) for d in first for n in first[d])
        held = json.loads((homes[0] / "out" / "version_0" / "network.json").read_text())["sites"]
        print(f"{len(held)} sites, {given.rounds} rounds, {given.delay:g} ms, {given.loss:g} % loss: {seconds:.1f} s, ")
        print(f"{links.passed} packets, {links.lost} of them lost")
        print(f"largest difference of an adapter's element from one process: {off:.3g}")
        return 0 if off <= 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
