"""The ``server`` command: the coordinator of a federation whose clients are on other machines."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from rich.console import Console

from fl_lightning import signals
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks import NetworkLog
from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.fingerprint import fingerprint_run
from fl_lightning.network.compatibility import SharedSettings, SiteInfo
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.transport import FlowerTransport
from fl_lightning.network.flower.local_socket import SocketFolder
from fl_lightning.network.flower.superlink import SuperLink, check_flower
from fl_lightning.network.tls import public_keys, server_files
from fl_lightning.runs.build import RunComponents, build_model_components
from fl_lightning.runs.fit import open_run, run_fit
from fl_lightning.storage.files import natural_key, read_json, write_json
from fl_lightning.storage.run_folder import locked
from fl_lightning.storage.run_layout import CHECKPOINTS, NETWORK

log = logging.getLogger(__name__)

"""In the run folder: the run's id, and what its sites said of themselves."""
START = 120.0
"""Seconds in which Flower must start the relay."""


def serve(config: RunConfig, *, resume: Path | None = None, console: Console | None = None) -> Path:
    """Run `config` with the sites whose keys are in ``network.certificates``, or go on with the run folder `resume`.

    Returns:
        The run folder.

    Raises:
        InputError: for bad input; no run folder is made then.
        RunError: if the run cannot go on.
    """
    check_flower()
    policy = share_policy(config.federation.share)
    if policy.pools:
        raise InputError(
            "federation.share: got central, which brings all records to one place; wanted another share, or fit"
        )
    if config.fabric.devices != 1:
        raise InputError(
            f"fabric.devices: got {config.fabric.devices} for the server, which trains nothing; wanted 1 "
            "(a site may have more: client --fabric.devices)"
        )
    with contextlib.ExitStack() as stack:
        if resume is not None:
            stack.enter_context(locked(resume))
        run, before = _recorded(resume)
        parts = build_model_components(config, lambda tokenizer: {})
        agreement = SharedSettings.of(config, parts.base_precision, parts.base_fingerprint)
        post, link = stack.enter_context(_flower(config))
        if unknown := [client_id for client_id in before if client_id not in link.nodes]:
            raise InputError(
                f"network.certificates: no public key of {unknown[0]}, which takes part in the run; wanted the keys of "
                "all its sites"
            )
        clients = RemoteClients(RequestTracker(post, run=run, agreement=agreement, network=config.network), policy)
        joined = {**before, **clients.join(list(before) or list(link.nodes))}
        clients.sites.update(joined)
        config.lora.check_names(joined)
        for client_id in sorted(joined, key=_as_in_a_folder):
            department, client = client_id.split("/", 1)
            parts.data[client_id] = ClientData(department, client, (), ())
        run_identity = _identity(config, parts, joined)
        start = stack.enter_context(open_run(config, parts, run_identity, resume))
        write_json(start.run_folder / NETWORK, {"run": run, "sites": {c: asdict(facts) for c, facts in joined.items()}})
        departments: dict[str, Any] = {}
        run_fit(
            start,
            config,
            parts,
            clients=clients,
            console=console,
            extra_callbacks=[NetworkLog(departments)],
            command="server",
        )
        clients.finish(departments)
        return start.run_folder


def _recorded(folder: Path | None) -> tuple[str, dict[str, SiteInfo]]:
    """(the run's id, its sites) as an earlier process wrote them; a new id and no sites where there was none.

    Raises:
        InputError: if the run folder is not that of a run between machines.
    """
    if folder is None or not (folder / NETWORK).exists():
        if folder is not None and (folder / CHECKPOINTS).exists():
            raise InputError(f"{folder}: no {NETWORK}: it is not a run of the server command; wanted fit --resume")
        return secrets.token_hex(16), {}
    found = read_json(folder / NETWORK)
    try:
        return str(found["run"]), {c: SiteInfo.read(facts) for c, facts in found["sites"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / NETWORK}: {error}; wanted the file as the server wrote it") from error


def _as_in_a_folder(client_id: str) -> tuple[str, list[tuple[int, int, str]]]:
    """Departments sorted, clients in natural order, as `fl_lightning.data.layout` finds them."""
    department, client = client_id.split("/", 1)
    return department, natural_key(client)


def _identity(config: RunConfig, parts: RunComponents, sites: Mapping[str, SiteInfo]) -> dict[str, Any]:
    """As of a run on one machine, but that the hashes of the records are what the sites say."""
    return {**fingerprint_run(config, {}, parts.base_fingerprint), "clients": {c: sites[c].records for c in parts.data}}


@contextlib.contextmanager
def _flower(config: RunConfig) -> Iterator[tuple[FlowerTransport, SuperLink]]:
    """A SuperLink with the sites' keys registered, and the post that its relay carries; ended with this block."""
    network, certificates = config.network, Path(config.network.certificates)
    files, keys = server_files(certificates), public_keys(certificates)
    if not keys:
        raise InputError(f"network.certificates: no site's public key in {certificates}; fl-lightning certs makes them")
    with SocketFolder() as folder, contextlib.ExitStack() as stack:
        listener = folder.listen()
        link = SuperLink(folder, files, network.host, network.port, max_message_mb=network.max_message_mb)
        stack.callback(link.close)
        link.register(keys)
        link.run()
        post = FlowerTransport(_accept(listener, link), link.nodes, link.check)
        stack.callback(post.close)
        log.info("listening on %s:%d for %d sites", network.host, network.port, len(keys))
        yield post, link


def _accept(listener: Listener, link: SuperLink) -> Connection:
    """The relay's connection.

    Raises:
        RunError: if Flower does not start the relay.
    """
    accepted: queue.Queue[Connection] = queue.Queue()

    def wait() -> None:
        with contextlib.suppress(OSError):
            accepted.put(listener.accept())

    threading.Thread(target=wait, daemon=True).start()
    for _ in range(int(START / 0.2)):
        signals.check()
        link.check()
        with contextlib.suppress(queue.Empty):
            return accepted.get(timeout=0.2)
    raise RunError(f"Flower did not start the relay within {START:.0f} s: {link.said()}")
