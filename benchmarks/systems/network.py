"""What a round between machines costs when nobody trains: our transport beside Flower's own empty round.

    python -m benchmarks.systems.network --sites 2 --rounds 5

Everything is on the loopback interface, with TLS and node authentication. Three figures a round: the questions and
answers of one fit through our coordinator and sites that do no work; the same without Flower, in memory; and Flower's
``grid.send_and_receive`` with an empty message to apps that do nothing.
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
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import torch

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import NetworkConfig, RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.protocol import ClientTask, ClientUpdate
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.transport import FlowerTransport, Reply
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.flower.subprocesses import free_port
from fl_lightning.network.flower.superlink import BUNDLE, SuperLink
from fl_lightning.network.flower.supernode import SuperNode
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
    """A post without a network."""

    def __init__(self, sites: dict[str, Site]) -> None:
        self.sites, self.count = sites, 0
        self.inbox: list[Reply] = []

    def online(self) -> dict[str, str]:
        return dict.fromkeys(self.sites, "")

    def send(self, client_id: str, kind: str, body: bytes, ttl: float) -> int:
        self.count += 1
        self.inbox.append(Reply(self.count, self.sites[client_id].answer(body)))
        return self.count

    def receive(self, timeout: float) -> Reply | None:
        return self.inbox.pop(0) if self.inbox else None


def make_sites(ids: list[str], folder: Path, agreement: SharedSettings) -> dict[str, Site]:
    ids_of = torch.tensor([1, 2, 3, 4])
    example = Example(ids_of, ids_of > 2)
    made = {}
    for client_id in ids:
        data = ClientData(*client_id.split("/"), [example], [example])
        made[client_id] = Site(RunConfig(), Idle(), data, agreement, folder / client_id, lambda place, state: None)
    return made


def rounds(post: Any, ids: list[str], agreement: SharedSettings, count: int) -> tuple[list[float], dict[str, int]]:
    network = NetworkConfig(join_timeout=300.0)
    clients = RemoteClients(RequestTracker(post, run="5eed", settings=agreement, network=network), share_policy("all"))
    clients.join(ids)
    seconds, before = [], dict(clients.traffic)
    for number in range(1, count + 1):
        started = time.perf_counter()
        found = list(clients.fit([ClientTask(c, number, START, 7) for c in ids]))
        seconds.append(time.perf_counter() - started)
        assert len(found) == len(ids)
    wire = {name: (total - before[name]) // count // len(ids) for name, total in clients.traffic.items()}
    return seconds, wire


def with_flower(
    ids: list[str],
    certs: Path,
    run: Callable[[SuperLink, Listener], Any],
    answer: dict[str, Callable[[bytes], bytes]],
    bundle: str = BUNDLE,
) -> Any:
    """Run `run(link, listener)` with a SuperLink and a SuperNode for each site, whose messages go to `answer`."""
    port = free_port()
    nodes, folders = [], []
    with SocketFolder() as folder:
        listener = folder.listen()
        link = SuperLink(folder, server_files(certs), "127.0.0.1", port, bundle_text=bundle)
        try:
            link.register(public_keys(certs))
            for client_id in ids:
                folders.append(SocketFolder())
                serve(folders[-1].listen(), answer.get(client_id, bytes))
                files = site_files(certs, client_id)
                nodes.append(SuperNode(folders[-1], files.ca, files.key, f"127.0.0.1:{port}", *client_id.split("/")))
            link.run()
            return run(link, listener)
        finally:
            for node in nodes:
                node.close()
            link.close()
            for own in folders:
                own.close()


def serve(listener: Listener, answer: Callable[[bytes], bytes]) -> None:
    def listen() -> None:
        while True:
            with listener.accept() as connection:
                connection.send_bytes(answer(connection.recv_bytes()))

    threading.Thread(target=listen, daemon=True).start()


def say(name: str, seconds: list[float]) -> None:
    # The first round is listed apart: SuperNodes fetch the run's bundle then.
    later = seconds[1:] or seconds
    middle, low, high = statistics.median(later), min(later), max(later)
    print(f"{name:<34} first {seconds[0]:7.3f} s, then median {middle:7.3f} s ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ids = [f"hr/client_{k}" for k in range(given.sites)]
    agreement = SharedSettings.of(RunConfig(), "fp32", "ab")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_certificates(folder / "certs", ids)
        memory = Memory(make_sites(ids, folder / "memory", agreement))
        seconds, _ = rounds(memory, ids, agreement, given.rounds)
        say("our round without Flower", seconds)
        homes = make_sites(ids, folder / "sites", agreement)
        tensors = sum(t.numel() * 4 for t in START.values())

        def ours(link: SuperLink, listener: Listener) -> Any:
            post = FlowerTransport(listener.accept(), link.nodes, link.check)
            found = rounds(post, ids, agreement, given.rounds)
            post.close()
            return found

        seconds, wire = with_flower(ids, folder / "certs", ours, {c: site.answer for c, site in homes.items()})
        say("our round on Flower", seconds)
        print(f"bytes a site and round: tensors {tensors}, messages down {wire['down']}, up {wire['up']}")
        result = folder / "empty.json"
        settings = {"sites": len(ids), "rounds": given.rounds, "result": str(result)}
        os.environ["FL_BENCHMARK"] = json.dumps(settings)
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        bundle = BUNDLE.replace("fl_lightning.network.flower.server_app:app", "network_empty:app")
        bundle = bundle.replace("fl_lightning.network.flower.client_app:app", "network_empty:client")

        def empty(link: SuperLink, listener: Listener) -> Any:
            end = time.monotonic() + 600
            while not result.exists() and time.monotonic() < end:
                link.check()
                time.sleep(0.2)
            time.sleep(0.5)
            return json.loads(result.read_text())

        say("Flower's own empty round", with_flower(ids, folder / "certs", empty, {}, bundle))


if __name__ == "__main__":
    main()
