"""What a round between machines costs when nobody trains: our transport beside Flower's own empty round.

    python -m benchmarks.systems.network --sites 2 --rounds 5

Everything is on the loopback interface, with TLS and node authentication. Three figures a round: the
requests and replies of one fit through our coordinator and sites that do no work; the same without Flower, in memory;
and Flower's ``grid.send_and_receive`` with an empty message to apps that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import NetworkConfig, RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.protocol import ClientTask, ClientUpdate
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.coordinator.join import join_sites
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.transport import FlowerTransport, Reply
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.flower.subprocesses import free_port
from fl_lightning.network.flower.superlink import BUNDLE, SuperLink
from fl_lightning.network.flower.supernode import SuperNode
from fl_lightning.network.site.listener import receive_requests
from fl_lightning.network.site.site import Site
from fl_lightning.network.tls import make_certificates, public_keys, server_files, site_files

START = {f"layers.{k}.{n}.weight": torch.zeros(8, 160) for k in range(8) for n in ("lora_A", "lora_B")}


class Idle:
    """Clients that send back what they got."""

    def fit(self, tasks: Sequence[ClientTask], on_step: Any = None, journal: Any = None) -> Iterator[ClientUpdate]:
        """What was sent, back again."""
        for task in tasks:
            yield ClientUpdate(task.client_id, task.round_num, dict(task.start), 1, 4, [1.0], 0.0)


class Memory:
    """A transport without a network."""

    def __init__(self, sites: dict[str, Site]) -> None:
        self.sites, self.count = sites, 0
        self.inbox: list[Reply] = []

    def online(self) -> dict[str, str]:
        return dict.fromkeys(self.sites, "")

    def send(self, client_id: str, kind: str, body: bytes, ttl: float) -> int:
        self.count += 1
        self.inbox.append(Reply(self.count, self.sites[client_id].handle(body)))
        return self.count

    def receive(self, timeout: float) -> Reply | None:
        return self.inbox.pop(0) if self.inbox else None


def make_sites(ids: list[str], folder: Path, settings: SharedSettings) -> dict[str, Site]:
    ids_of = torch.tensor([1, 2, 3, 4])
    example = Example(ids_of, ids_of > 2)
    made = {}
    for client_id in ids:
        data = ClientData(*client_id.split("/"), [example], [example])
        made[client_id] = Site(
            RunConfig(), Idle(), data, settings, folder / client_id, START, lambda place, state: None
        )
    return made


def rounds(transport: Any, ids: list[str], settings: SharedSettings, count: int) -> tuple[list[float], dict[str, int]]:
    network = NetworkConfig(join_timeout=300.0)
    requests = RequestTracker(transport, run="5eed", settings=settings, network=network)
    join_sites(requests, ids)
    clients = RemoteClients(requests, share_policy("all"))
    seconds, before = [], dict(clients.traffic)
    for number in range(1, count + 1):
        started = time.perf_counter()
        updates = list(clients.fit([ClientTask(c, number, START, 7) for c in ids]))
        seconds.append(time.perf_counter() - started)
        assert len(updates) == len(ids)
    num_bytes = {name: (total - before[name]) // count // len(ids) for name, total in clients.traffic.items()}
    return seconds, num_bytes


def with_flower(
    ids: list[str],
    certs: Path,
    run: Callable[[SuperLink, SocketFolder], Any],
    answer: dict[str, Callable[[bytes], bytes]],
    bundle: str = BUNDLE,
) -> Any:
    """Run `run(link, folder)` with a SuperLink and a SuperNode for each site, whose messages go to `answer`."""
    port = free_port()
    nodes, folders = [], []
    with SocketFolder() as folder:
        link = SuperLink(folder, server_files(certs), "127.0.0.1", port, bundle_text=bundle)
        try:
            link.register(public_keys(certs))
            for client_id in ids:
                folders.append(SocketFolder())
                serve(folders[-1], answer.get(client_id, bytes))
                files = site_files(certs, client_id)
                nodes.append(SuperNode(folders[-1], files.ca, files.key, f"127.0.0.1:{port}", *client_id.split("/")))
            link.run()
            return run(link, folder)
        finally:
            for node in nodes:
                node.close()
            link.close()
            for site_folder in folders:
                site_folder.close()


def serve(folder: SocketFolder, answer: Callable[[bytes], bytes]) -> None:
    requests = receive_requests(folder)

    def listen() -> None:
        while True:
            connection, message = requests.get()
            with connection:
                connection.send_bytes(answer(message))

    threading.Thread(target=listen, daemon=True).start()


def say(name: str, seconds: list[float]) -> None:
    # The first round is listed apart: SuperNodes fetch the run's bundle then.
    later = seconds[1:] or seconds
    median, low, high = statistics.median(later), min(later), max(later)
    print(f"{name:<34} first {seconds[0]:7.3f} s, then median {median:7.3f} s ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = [f"hr/client_{k}" for k in range(arguments.sites)]
    settings = SharedSettings.of(RunConfig(), "fp32", "ab")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_certificates(folder / "certs", ids)
        memory = Memory(make_sites(ids, folder / "memory", settings))
        seconds, _ = rounds(memory, ids, settings, arguments.rounds)
        say("our round without Flower", seconds)
        sites = make_sites(ids, folder / "sites", settings)
        tensors = sum(t.numel() * 4 for t in START.values())

        def ours(link: SuperLink, folder: SocketFolder) -> Any:
            connection = folder.accept()
            assert connection is not None
            transport = FlowerTransport(connection, link.nodes, link.check)
            result = rounds(transport, ids, settings, arguments.rounds)
            transport.close()
            return result

        seconds, num_bytes = with_flower(ids, folder / "certs", ours, {c: site.handle for c, site in sites.items()})
        say("our round on Flower", seconds)
        print(f"bytes a site and round: tensors {tensors}, messages down {num_bytes['down']}, up {num_bytes['up']}")
        result = folder / "empty.json"
        options = {"sites": len(ids), "rounds": arguments.rounds, "result": str(result)}
        os.environ["FL_BENCHMARK"] = json.dumps(options)
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        bundle = BUNDLE.replace("fl_lightning.network.flower.server_app:app", "network_empty:app")
        bundle = bundle.replace("fl_lightning.network.flower.client_app:app", "network_empty:client")

        def empty(link: SuperLink, folder: SocketFolder) -> Any:
            end = time.monotonic() + 600
            while not result.exists() and time.monotonic() < end:
                link.check()
                time.sleep(0.2)
            time.sleep(0.5)
            return json.loads(result.read_text())

        say("Flower's own empty round", with_flower(ids, folder / "certs", empty, {}, bundle))


if __name__ == "__main__":
    main()
