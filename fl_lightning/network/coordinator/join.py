"""The start of a run: waits for the sites to connect, and asks each what it has."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence

import torch

from fl_lightning import signals
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import RunError
from fl_lightning.network.compatibility import SiteInfo
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.validation import HEADER_BYTES, RejectedReply
from fl_lightning.storage.files import natural_key

log = logging.getLogger(__name__)

AT_SITE = Example(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool))
"""A record that is not on this machine."""
ASK_AGAIN_SECONDS = 30.0
"""A site that does not answer is asked again after this time, or at once if it has connected anew."""

REJOIN_SECONDS = 60.0
"""A buffered run that is resumed goes on after this time with the sites that are back."""


def join_sites(requests: RequestTracker, client_ids: Iterable[str], *, rejoin: bool = False) -> Mapping[str, SiteInfo]:
    """Wait for sites, at most ``network.join_timeout`` seconds.

    Args:
        requests: to the sites.
        client_ids: of all sites.
        rejoin: whether nobody waits for sites that have joined earlier: some suffice after `REJOIN_SECONDS`.

    Returns:
        {client_id: what the site says about itself} of those that joined, in the order of `client_ids`; they are in
        ``requests.sites``, too.

    Raises:
        RunError: if fewer joined in a department than ``network.quorum`` asks for.
    """
    expected = list(client_ids)
    reasons = dict.fromkeys(expected, "it has not connected")
    last_asked: dict[str, tuple[float, str]] = {}
    begin = time.monotonic()
    end = begin + requests.network.join_timeout
    log.info("waiting for %d sites", len(expected))
    while (missing := [c for c in expected if c not in requests.sites]) and time.monotonic() < end:
        signals.check()
        if rejoin and requests.sites and time.monotonic() - begin > REJOIN_SECONDS:
            break
        online = requests.transport.online()
        for client_id in [c for c in missing if c in online]:
            asked_at, asked_since = last_asked.get(client_id, (-math.inf, ""))
            if asked_since != online[client_id] or time.monotonic() - asked_at > ASK_AGAIN_SECONDS:
                last_asked[client_id] = time.monotonic(), online[client_id]
                requests.send(client_id, "query", {"do": "hello"}, [], HEADER_BYTES, ASK_AGAIN_SECONDS * 2)
        for client_id, header, _ in requests.replies(reasons):
            try:
                requests.register_site(client_id, header)
                hidden = requests.sites[client_id].tokens == 0  # with secure aggregation
                log.info("%s has joined%s", client_id, "" if hidden else f": {requests.sites[client_id].train} records")
            except RejectedReply as error:
                reasons[client_id] = str(error)
    requests.pending.clear()
    for client_id in missing:
        log.warning("%s has not joined: %s", client_id, reasons[client_id])
    if not (rejoin and requests.sites):
        _check_quorum(requests, expected, reasons)
    return {client_id: requests.sites[client_id] for client_id in expected if client_id in requests.sites}


def data_at_sites(sites: Mapping[str, SiteInfo]) -> dict[str, ClientData]:
    """{client_id: no records, but as many `AT_SITE` as it has selection records}.

    Departments are sorted and clients in natural order, as `fl_lightning.data.layout` lists them.

    Example:
        >>> info = SiteInfo("hr/client_2", 9, 4, 3, 80, "ab", 8)
        >>> data = data_at_sites({"hr/client_10": info, "hr/client_2": info})
        >>> list(data), len(data["hr/client_2"].selection)
        (['hr/client_2', 'hr/client_10'], 3)
    """
    data: dict[str, ClientData] = {}
    for department, client in sorted((c.split("/", 1) for c in sites), key=lambda c: (c[0], natural_key(c[1]))):
        selection = [AT_SITE] * sites[f"{department}/{client}"].selection
        data[f"{department}/{client}"] = ClientData(department, client, (), (), selection)
    return data


def _check_quorum(requests: RequestTracker, expected: Sequence[str], reasons: Mapping[str, str]) -> None:
    for department in sorted({client_id.split("/", 1)[0] for client_id in expected}):
        members = [c for c in expected if c.split("/", 1)[0] == department]
        missing = [c for c in members if c not in requests.sites]
        num_joined, required = len(members) - len(missing), requests.num_required(len(members))
        if num_joined < required:
            raise RunError(
                f"{department}: expected {required} sites (network.quorum) within "
                f"{requests.network.join_timeout:.0f} s (network.join_timeout), got {num_joined} of {len(members)} "
                f"sites; {missing[0]}: {reasons[missing[0]]}"
            )
