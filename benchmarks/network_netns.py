"""A run between hosts that are network namespaces, over links with latency and loss; needs root, iproute2 and netem.

    python benchmarks/network_netns.py --sites 2 --delay 20 --loss 1

Each host has a link of its own to a bridge, with the delay and the loss on both of its ends, and holds the records of
its one client alone. The adapters must be those of the same run in one process, and nothing must be left over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from safetensors.torch import load_file

from fl_lightning import bundled
from fl_lightning.network.certificates import make_certificates

NET = "10.77.0"


def sh(*command: object) -> None:
    """Run a command; an error ends the script."""
    subprocess.run([str(word) for word in command], check=True)


@contextlib.contextmanager
def hosts(count: int, delay: float, loss: float) -> Iterator[list[str]]:
    """Namespaces on a bridge, numbered from 1 in their addresses too; removed at the end."""
    bridge, *names = (f"fl{os.getpid()}-{k}" for k in range(count + 1))
    try:
        for name in (bridge, *names):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        sh("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", bridge, "link", "set", "br0", "up")
        for number, name in enumerate(names, start=1):
            near, far = "eth0", f"to{number}"
            sh("ip", "link", "add", far, "netns", bridge, "type", "veth", "peer", "name", near, "netns", name)
            sh("ip", "-n", bridge, "link", "set", far, "master", "br0", "up")
            sh("ip", "-n", name, "addr", "add", f"{NET}.{number}/24", "dev", near)
            sh("ip", "-n", name, "link", "set", near, "up")
            for place, device in ((name, near), (bridge, far)):
                netem = ("netem", "delay", f"{delay / 2}ms", "loss", f"{loss / 2}%")
                sh("ip", "netns", "exec", place, "tc", "qdisc", "add", "dev", device, "root", *netem)
        yield names
    finally:
        for name in (bridge, *names):
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
    parser.add_argument("--loss", type=float, default=1.0, help="percent of packets, per direction and link")
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
    with tempfile.TemporaryDirectory() as place, hosts(1 + given.sites, given.delay, given.loss) as names:
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
        sh("ip", "netns", "exec", names[1], "ping", "-c", "3", "-q", f"{NET}.1")
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
        print(f"largest difference of an adapter's element from one process: {off:.3g}")
        return 0 if off <= 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
