"""Own adapters that sites lend to each other at the end of a run: who gets whose, both by their own configs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

import torch

from fl_lightning import signals
from fl_lightning.network.compatibility import SiteInfo
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.validation import (
    HEADER_BYTES,
    TENSOR_BYTES,
    adapter_rank,
    max_adapter_bytes,
    problem_with_adapter,
)
from fl_lightning.state import LoraState, num_bytes

log = logging.getLogger(__name__)

LENDING_SECONDS = 60.0
"""How long the end of a run waits for adapters that sites lend, and again for those that borrow to have got them."""


def lenders_by_borrower(sites: Mapping[str, SiteInfo]) -> dict[str, list[str]]:
    """{client_id: whose own adapters it gets}, of sites that ask for some that others lend.

    Example:
        >>> from dataclasses import replace
        >>> info = SiteInfo("hr/a", 9, 4, 3, 80, "ab", 8)
        >>> sites = {"hr/a": replace(info, mates="all"), "hr/b": replace(info, lend="department"),
        ...          "it/c": replace(info, lend="all"), "it/d": replace(info, mates="department")}
        >>> lenders_by_borrower(sites)
        {'hr/a': ['hr/b', 'it/c'], 'it/d': ['it/c']}
    """

    def covers(wish: str, of: str, other: str) -> bool:
        return wish == "all" or (wish == "department" and of.split("/", 1)[0] == other.split("/", 1)[0])

    return {
        borrower: lenders
        for borrower, info in sites.items()
        if (
            lenders := [
                lender
                for lender, theirs in sites.items()
                if lender != borrower and covers(info.mates, borrower, lender) and covers(theirs.lend, lender, borrower)
            ]
        )
    }


def hand_over_own_adapters(requests: RequestTracker, departments: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Ask the sites that lend for their own adapters, and send these to the sites that borrow.

    No message is sent if nobody lends or borrows. A site that does not answer in time lends or gets nothing.

    Args:
        requests: to the sites, none pending.
        departments: {department: its whole adapter}, with which a site's own is mixed under APFL.
    """
    lenders = lenders_by_borrower(requests.sites)
    lent = _collect(requests, departments, {name for names in lenders.values() for name in names})
    _hand_out(requests, {b: {name: lent[name] for name in names if name in lent} for b, names in lenders.items()})


def _collect(
    requests: RequestTracker, departments: Mapping[str, Mapping[str, torch.Tensor]], lenders: set[str]
) -> dict[str, LoraState]:
    """{client_id: own adapter} of the lenders that answer."""
    online = requests.transport.online()
    reasons = dict.fromkeys(sorted(lenders), "it is not connected")
    limits: dict[str, tuple[Mapping[str, torch.Tensor], int]] = {}
    for client_id in [name for name in reasons if name in online]:
        department = departments[client_id.split("/", 1)[0]]
        rank = requests.sites[client_id].r + (adapter_rank(department) if requests.mixes_own else 0)
        limits[client_id] = department, rank
        max_bytes = max_adapter_bytes(department, rank)
        requests.send(client_id, "query", {"do": "lend"}, [department], max_bytes, LENDING_SECONDS)
        reasons[client_id] = "it did not reply in time"
    lent: dict[str, LoraState] = {}
    for client_id, header, states in _replies(requests, reasons):
        like, rank = limits[client_id]
        problem: str | None = str(header.get("failed") or header.get("refused") or "expected one adapter, got none")
        if header.get("lent") is True and len(states) == 1:
            problem = problem_with_adapter(states[0], like, max_rank=rank)
        if problem is not None:
            reasons[client_id] = problem[:300]
            continue
        lent[client_id] = states[0]
        del reasons[client_id]
    for client_id, reason in reasons.items():
        log.warning("the own adapter that %s lends is not handed on: %s", client_id, reason)
    return lent


def _hand_out(requests: RequestTracker, lent: Mapping[str, Mapping[str, LoraState]]) -> None:
    """Send {borrower: {lender: own adapter}}, as many in a message as its limit allows."""
    online = requests.transport.online()
    chunks = {c: _chunks(adapters, requests.network.max_message_mb * 2**20) for c, adapters in lent.items() if adapters}
    reasons = dict.fromkeys(chunks, "it is not connected")

    def send(client_id: str) -> None:
        adapters = chunks[client_id].pop(0)
        header = {"do": "borrow", "mates": list(adapters)}
        requests.send(client_id, "query", header, list(adapters.values()), HEADER_BYTES, LENDING_SECONDS)
        reasons[client_id] = "it did not reply in time"

    for client_id in [name for name in chunks if name in online]:
        send(client_id)
    for client_id, header, _ in _replies(requests, reasons):
        if header.get("done") is not True:
            reasons[client_id] = str(header.get("failed"))[:300]
        elif chunks[client_id]:
            send(client_id)
        else:
            del reasons[client_id]
    for client_id, reason in reasons.items():
        log.warning("%s may not have got all adapters that others lend: %s", client_id, reason)


def _chunks(adapters: Mapping[str, LoraState], limit: float) -> list[dict[str, LoraState]]:
    """The adapters in parts of at most half a message."""
    chunks: list[dict[str, LoraState]] = []
    size = float("inf")
    for name, adapter in adapters.items():
        size += num_bytes(adapter) + TENSOR_BYTES * len(adapter)
        if size > limit / 2:
            chunks.append({})
            size = num_bytes(adapter) + TENSOR_BYTES * len(adapter)
        chunks[-1][name] = adapter
    return chunks


def _replies(
    requests: RequestTracker, reasons: dict[str, str]
) -> Iterator[tuple[str, dict[str, object], list[LoraState]]]:
    """The replies to all pending requests that come in time."""
    end = time.monotonic() + LENDING_SECONDS
    while requests.pending and time.monotonic() < end:
        signals.check()
        yield from requests.replies(reasons)
    requests.pending.clear()
