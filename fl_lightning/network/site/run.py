"""The ``client`` command: a site that keeps base model and records, and the SuperNode that brings it messages."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from fl_lightning import launch, signals
from fl_lightning.clustering.tree import client_teams
from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData, load_client, with_teams
from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.flower.superlink import check_flower
from fl_lightning.network.flower.supernode import SuperNode
from fl_lightning.network.site.site import Site
from fl_lightning.network.tls import site_files
from fl_lightning.runs.build import build_model_components, make_local_clients
from fl_lightning.storage.run_folder import locked
from fl_lightning.training.worker_processes import SeveralProcesses

log = logging.getLogger(__name__)

LINGER = 5.0
"""Seconds in which Flower carries the last answer away."""
Request = tuple[Connection, bytes]


def run_client(config: RunConfig, department: str, client: str) -> None:
    """Take part in a server's run as one client, until the run is over.

    Raises:
        InputError: for bad input, or if the server's run is not like this config.
        RunError: if Flower's side does not come up.
    """
    check_flower()
    client_id = f"{department}/{client}"
    files = site_files(Path(config.network.certificates), client_id)

    def read(tokenizer: Any) -> dict[str, ClientData]:
        data, team_of = config.data, client_teams(config.federation.hierarchy.groups)
        # A client of a team is known by the team's name; its records lie where its department is.
        homes = {f"{team}/{place.split('/', 1)[1]}": place for place, team in team_of.items()}
        own = load_client(
            data.root, tokenizer, homes.get(client_id, client_id), max_records=data.max_records,
            max_length=data.max_length, eval_fraction=data.eval_fraction, seed=config.seed,
        )  # fmt: skip
        return with_teams(own, {place: team for place, team in team_of.items() if place in own})

    parts = build_model_components(config, read)
    clients = make_local_clients(parts, config)
    if not launch.is_first():
        if isinstance(clients, SeveralProcesses):
            clients.serve()
        return
    own = parts.data[client_id]
    log.info("%s: base model loaded, %d training and %d held-out records", client_id, len(own.train), len(own.eval))
    place = Path(config.output) / "sites" / f"{department}.{client}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = config.network.host
    address = f"[{address}]:{config.network.port}" if ":" in address else f"{address}:{config.network.port}"
    with locked(place), SocketFolder() as folder, contextlib.ExitStack() as stack:
        site = Site(
            config,
            clients,
            own,
            SharedSettings.of(config, parts.base_precision, parts.base_fingerprint),
            place,
            partial(export_lora_adapter, parts.module.model),
        )
        questions = _listen(folder.listen())
        node = SuperNode(folder, files.ca, files.key, address, department, client)
        stack.callback(node.close)
        with signals.at_safe_points():
            _event_loop(site, node, questions)
        if isinstance(clients, SeveralProcesses):
            clients.stop()
    if site.refusal is not None:
        raise InputError(f"the server's run is not like this config: {site.refusal}")


def _event_loop(site: Site, node: SuperNode, questions: queue.Queue[Request]) -> None:
    """Reply questions until the run is over, or this site is not wanted."""
    while not site.over and site.refusal is None:
        signals.check()
        node.check()
        try:
            connection, message = questions.get(timeout=0.2)
        except queue.Empty:
            continue
        with connection, contextlib.suppress(OSError):  # who asked may have gone
            connection.send_bytes(site.answer(message))
    end = time.monotonic() + LINGER
    while time.monotonic() < end:
        signals.check()
        time.sleep(0.1)


def _listen(listener: Listener) -> queue.Queue[Request]:
    """Take in questions while the site is at work."""
    questions: queue.Queue[Request] = queue.Queue()

    def listen() -> None:
        while True:
            try:
                connection = listener.accept()
                questions.put((connection, connection.recv_bytes()))
            except AuthenticationError as error:
                log.warning("a process without this site's key asked: %s", error)
            except EOFError:
                continue
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    return questions
