"""The command ``client``: a site that holds base model and records, and the SuperNode that brings it messages."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fl_lightning import launch, signals
from fl_lightning.clustering.tree import client_teams
from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.data.teams import regroup_clients
from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import collect_lora_state, export_lora_adapter
from fl_lightning.network.compatibility import SharedSettings, check_between_machines
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.flower.superlink import check_flower
from fl_lightning.network.flower.supernode import SuperNode
from fl_lightning.network.site.listener import Request, receive_requests
from fl_lightning.network.site.roster import read_keys
from fl_lightning.network.site.site import Site
from fl_lightning.network.tls import site_files
from fl_lightning.runs.build import build_model_components, make_local_clients
from fl_lightning.storage.run_folder import locked
from fl_lightning.training.worker_processes import WorkerProcesses

log = logging.getLogger(__name__)

LAST_REPLY_SECONDS = 5.0
"""Time for Flower to deliver the last reply before its processes are ended."""


def run_client(config: RunConfig, department: str, client: str) -> None:
    """Take part in a server's run as one client, until the run ends.

    Raises:
        InputError: for bad input, or if the config does not fit the server's.
        RunError: if Flower's SuperNode does not stay up.
    """
    check_flower()
    check_between_machines(config)
    if config.federation.secure_aggregation:
        read_keys(config)  # a roster that cannot be used is refused now, not when the base model is loaded
    client_id = f"{department}/{client}"
    files = site_files(Path(config.network.certificates), client_id)
    components = build_model_components(config, partial(load_client, config, client_id))
    clients = make_local_clients(components, config)
    if not launch.is_first():
        if isinstance(clients, WorkerProcesses):
            clients.serve()
        return
    data = components.data[client_id]
    log.info("%s: base model loaded, %d training and %d held-out records", client_id, len(data.train), len(data.eval))
    site_folder = Path(config.output) / "sites" / f"{department}.{client}"
    site_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = SharedSettings.of(config, components.base_precision, components.base_fingerprint)
    export = partial(export_lora_adapter, components.module.model)
    with locked(site_folder), SocketFolder() as folder, contextlib.ExitStack() as stack:
        initial = collect_lora_state(components.module.model)
        site = Site(config, clients, data, settings, site_folder, initial, export)
        requests = receive_requests(folder)
        node = SuperNode(folder, files.ca, files.key, _server_address(config), department, client)
        stack.callback(node.close)
        with signals.at_safe_points():
            _event_loop(site, node, requests)
        if isinstance(clients, WorkerProcesses):
            clients.stop()
    if site.mismatch is not None:
        raise InputError(f"this config does not fit the server's: {site.mismatch}")


def load_client(config: RunConfig, client_id: str, tokenizer: Any, max_length: int) -> Mapping[str, ClientData]:
    """The records of one client.

    A client of a team has the team's name in its id, but its records are in its department's folder.
    """
    team_of = client_teams(config.federation.hierarchy.groups)
    member_ids = {f"{team}/{member.split('/', 1)[1]}": member for member, team in team_of.items()}
    data = load_clients(
        config.data.root,
        tokenizer,
        client_id=member_ids.get(client_id, client_id),
        max_records=config.data.max_records,
        max_length=max_length,
        eval_fraction=config.data.eval_fraction,
        selection=config.data.selection_fraction,
        eval_records=config.evaluation.records,
        columns=config.data.columns,
        seed=config.seed,
        exclude=config.data.exclude,
        exclude_records=config.data.exclude_records,
    )
    return regroup_clients(data, {member: team for member, team in team_of.items() if member in data})


def _server_address(config: RunConfig) -> str:
    host, port = config.network.host, config.network.port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _event_loop(site: Site, node: SuperNode, requests: queue.Queue[Request]) -> None:
    """Answer requests until the run ends or the server's settings turn out not to fit."""
    while not site.finished and site.mismatch is None:
        signals.check()
        node.check()
        try:
            connection, message = requests.get(timeout=0.2)
        except queue.Empty:
            continue
        node.delivered()
        with connection, contextlib.suppress(OSError):  # the asking process may be gone
            connection.send_bytes(site.handle(message))
        node.answered()
    end = time.monotonic() + LAST_REPLY_SECONDS
    while time.monotonic() < end:
        signals.check()
        time.sleep(0.1)
