"""The command ``server``: the coordinator of a federation whose clients are on other machines."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from fl_lightning import signals
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks import FederatedCallback, NetworkLog
from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.fingerprint import fingerprint_run
from fl_lightning.network.compatibility import SharedSettings, SiteInfo, check_between_machines
from fl_lightning.network.coordinator.buffered_clients import BufferedClients
from fl_lightning.network.coordinator.join import data_at_sites, join_sites
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.secure_clients import SecureClients
from fl_lightning.network.coordinator.signatures import UpdateSignatures
from fl_lightning.network.coordinator.site_rounds import SiteRounds
from fl_lightning.network.coordinator.transport import FlowerTransport
from fl_lightning.network.flower import subprocesses
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.flower.superlink import SuperLink, check_flower
from fl_lightning.network.tls import public_keys, server_files
from fl_lightning.provenance.salts import make_secret
from fl_lightning.runs.build import RunComponents, build_model_components, check_sums
from fl_lightning.runs.fit import open_run, run_fit
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_folder import locked
from fl_lightning.storage.run_layout import CHECKPOINTS, NETWORK

log = logging.getLogger(__name__)

RELAY_START_SECONDS = 120.0
"""Time in which Flower must start the relay."""


def serve(config: RunConfig, *, resume: Path | None = None, console: Console | None = None) -> Path:
    """Run `config` with the sites whose keys are in ``network.certificates``, or continue the run folder `resume`.

    Returns:
        The run folder.

    Raises:
        InputError: for bad input; no run folder is made then.
        RunError: if the run cannot go on.
    """
    check_flower()
    check_between_machines(config)
    if config.fabric.devices != 1:
        raise InputError(
            f"fabric.devices: expected 1 for the server, which trains nothing, got {config.fabric.devices}; a site may "
            "have more (client --fabric.devices)"
        )
    with contextlib.ExitStack() as stack:
        if resume is not None:
            stack.enter_context(locked(resume))
        run_id, known_sites, starts = _read_sites(resume)
        components = build_model_components(config, lambda tokenizer, max_length: {})
        settings = SharedSettings.of(config, components.base_precision, components.base_fingerprint)
        transport, superlink = stack.enter_context(_flower(config))
        if unknown := [client_id for client_id in known_sites if client_id not in superlink.nodes]:
            raise InputError(
                f"network.certificates: expected the public keys of all sites of the run, got none of {unknown[0]}"
            )
        requests = RequestTracker(transport, run=run_id, settings=settings, network=config.network)
        is_buffered = config.federation.schedule.mode == "buffered"
        rejoin = is_buffered and bool(known_sites)
        sites = {**known_sites, **join_sites(requests, known_sites or superlink.nodes, rejoin=rejoin)}
        requests.sites.update(sites)
        config.lora.check_names(sites)
        check_sums(config.federation, sites)
        components.data = data_at_sites(sites)
        run_start = stack.enter_context(open_run(config, components, _fingerprint(config, components, sites), resume))
        site_values = {client_id: asdict(info) for client_id, info in sites.items()}
        write_json(run_start.run_folder / NETWORK, {"run": run_id, "starts": starts + 1, "sites": site_values})
        secret = make_secret(run_start.run_folder) if config.ledger.enabled else None
        signatures = None if secret is None else UpdateSignatures(secret)
        policy = share_policy(config.federation.share, config.federation.share_layers)
        levels: dict[str, Any] = {}
        callbacks: list[FederatedCallback] = [NetworkLog(levels)]
        if is_buffered:
            clients: RemoteClients = (buffered := BufferedClients(requests, policy, signatures))
            callbacks.append(SiteRounds(buffered))
        elif config.federation.secure_aggregation:
            clients = SecureClients(requests, policy, config.federation, attempt=starts + 1)
        else:
            clients = RemoteClients(requests, policy, signatures)
        run_fit(
            run_start,
            config,
            components,
            clients=clients,
            console=console,
            extra_callbacks=callbacks,
            command="server",
        )
        clients.finish(levels, config.federation.rounds)
        return run_start.run_folder


def _read_sites(run_folder: Path | None) -> tuple[str, dict[str, SiteInfo], int]:
    """(id of the run, its sites, how often it was started) as an earlier process wrote them; a new id for a new run.

    Raises:
        InputError: if the run folder is not of a run between machines.
    """
    if run_folder is None or not (run_folder / NETWORK).exists():
        if run_folder is not None and (run_folder / CHECKPOINTS).exists():
            raise InputError(
                f"{run_folder}: expected {NETWORK} in it, got none: it is not a run of the server command; use "
                "fit --resume"
            )
        return secrets.token_hex(16), {}, 0
    content = read_json(run_folder / NETWORK)
    try:
        sites = {c: SiteInfo.from_dict(values) for c, values in content["sites"].items()}
        return str(content["run"]), sites, int(content.get("starts", 1))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{run_folder / NETWORK}: expected the file as the server wrote it, got {error}") from error


def _fingerprint(config: RunConfig, components: RunComponents, sites: Mapping[str, SiteInfo]) -> dict[str, Any]:
    """As of a run on one machine, with the hashes of the records that the sites report."""
    records = {client_id: sites[client_id].records for client_id in components.data}
    return {**fingerprint_run(config, {}, components.base_fingerprint), "clients": records}


@contextlib.contextmanager
def _flower(config: RunConfig) -> Iterator[tuple[FlowerTransport, SuperLink]]:
    """Flower's processes with the sites' keys registered, and the transport through its relay, while the block runs."""
    network, certificates = config.network, Path(config.network.certificates)
    files, keys = server_files(certificates), public_keys(certificates)
    with SocketFolder() as folder, contextlib.ExitStack() as stack:
        superlink = SuperLink(folder, files, network.host, network.port, max_message_mb=network.max_message_mb)
        stack.callback(superlink.close)
        superlink.register(keys)
        superlink.run()
        transport = FlowerTransport(_accept_relay(folder, superlink), superlink.nodes, superlink.check)
        stack.callback(transport.close)
        log.info("listening on %s:%d for %d sites", network.host, network.port, len(keys))
        yield transport, superlink


def _accept_relay(folder: SocketFolder, superlink: SuperLink) -> Connection:
    """Wait for the relay to connect.

    Raises:
        RunError: if Flower does not start it within `RELAY_START_SECONDS`.
    """
    accepted: queue.Queue[Connection | None] = queue.Queue()
    threading.Thread(target=lambda: accepted.put(folder.accept()), name="relay-accept", daemon=True).start()
    for _ in range(int(RELAY_START_SECONDS / 0.2)):
        signals.check()
        superlink.check()
        with contextlib.suppress(queue.Empty):
            if (connection := accepted.get(timeout=0.2)) is not None:
                return connection
    raise RunError(
        f"Flower: expected it to start the relay within {RELAY_START_SECONDS:.0f} s, got "
        f"{subprocesses.last_lines(superlink.log)}"
    )
