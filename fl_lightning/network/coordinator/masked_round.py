"""A department's round of secure aggregation at the server: what its sites are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fl_lightning.network.masked_messages import (
    MASKED,
    MaskedStep,
    bytes_to_json,
    keys_from_json,
    keys_to_json,
    request_to_json,
    shares_from_json,
    unmask_from_json,
)
from fl_lightning.network.validation import HEADER_BYTES, RejectedReply
from fl_lightning.privacy.secure_aggregation.messages import num_bytes
from fl_lightning.privacy.secure_aggregation.ring import error_bound, restore
from fl_lightning.privacy.secure_aggregation.server import SecureServer
from fl_lightning.privacy.secure_aggregation.session import SecureMean
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms
from fl_lightning.state import LoraState

_DONE: dict[MaskedStep, str] = {
    "share": "advertised keys", "mask": "sent shares", "sign": "sent an input", "unmask": "signed the list"
}  # fmt: skip
"""What a site has done that is asked for a step."""


class MaskedRound:
    """One attempt to add up a department's updates in a round.

    Args:
        terms: of the attempt.
        roster: {client_id: public identity, 32 bytes} with which the sites have joined.

    Attributes:
        active: sites that have answered every request so far.
    """

    def __init__(self, terms: Terms, roster: Mapping[str, bytes]) -> None:
        self.terms, self._server = terms, SecureServer(terms, roster)
        self.active: set[str] = set()
        self._up: dict[str, int] = {}
        self._down: dict[str, int] = {}

    def receive_keys(self, client_id: str, header: Mapping[str, Any]) -> None:
        """A site has trained, and gives its keys.

        Raises:
            RejectedReply: if it gives something else.
        """
        keys = _parsed(keys_from_json, header.get("keys"))
        self._server.receive_keys(client_id, keys)
        self.active.add(client_id)
        self._up[client_id] = num_bytes(keys)

    def requests(self, step: MaskedStep) -> dict[str, Any]:
        """{client_id: what it is asked in a step}, of those that are active; JSON values.

        Raises:
            SecureAggregationError: if too few are left. Nothing is learned then.
        """
        server, asked = self._server, sorted(self.active)
        self.active = set()
        if not asked:  # else the server checks how many are left
            raise SecureAggregationError(
                f"secure aggregation of {self.terms.group}: expected at least {self.terms.clients_needed} clients that "
                f"have {_DONE[step]}, got 0; nothing is learned of any update"
            )
        if step == "share":
            keys = server.advertisements()
            asked = [client_id for client_id in asked if client_id in keys]
            as_json = {name: keys_to_json(message) for name, message in keys.items()}
            return {c: self._count(c, keys, as_json) for c in asked}
        if step == "mask":
            return {c: self._count(c, s := server.shares_for(c), bytes_to_json(s)) for c in asked}
        if step == "sign":
            survivors = server.survivors()
            return {c: self._count(c, survivors, survivors) for c in asked}
        return {c: self._count(c, r := server.request_for(c), request_to_json(r)) for c in asked}

    def receive(self, step: MaskedStep, client_id: str, header: Mapping[str, Any], states: list[LoraState]) -> None:
        """An answer of a site that was asked.

        Raises:
            RejectedReply: if it refuses, or answers something else; it has dropped out then.
        """
        for word in ("refused", "failed"):
            if word in header:
                raise RejectedReply(f"the site says: {str(header[word])[:500]}")
        message: Any
        if step == "share":
            self._server.receive_shares(client_id, message := _parsed(shares_from_json, header))
        elif step == "mask":
            message = self._masked(states)
            self._server.receive_input(client_id, message)
        elif step == "sign":
            message = _parsed(_signature, header.get("signature"))
            self._server.receive_signature(client_id, message)
        else:
            self._server.receive_unmask(client_id, message := _parsed(unmask_from_json, header))
        self._up[client_id] += num_bytes(message)
        self.active.add(client_id)

    def max_bytes(self, step: MaskedStep) -> int:
        """Largest size of a correct answer."""
        return HEADER_BYTES + (4 * (self.terms.size + 1) if step == "mask" else 0)

    def result(self) -> SecureMean:
        """The mean of the updates that are in the sum.

        Raises:
            SecureAggregationError: if the masks cannot be taken off. Nothing is learned then.
        """
        mean, weight = restore(self._server.result(), self.terms)
        clients = self._server.survivors()
        return SecureMean(mean, weight, clients, error_bound(self.terms, len(clients), weight), self._up, self._down)

    def _count(self, client_id: str, message: Any, as_json: Any) -> Any:
        self._down[client_id] = self._down.get(client_id, 0) + num_bytes(message)
        return as_json

    def _masked(self, states: list[LoraState]) -> Any:
        shape = (self.terms.size + 1,)
        tensor = states[0].get(MASKED) if len(states) == 1 else None
        if tensor is None or tensor.dtype != torch.int32 or tuple(tensor.shape) != shape or len(states[0]) != 1:
            raise RejectedReply(f"expected a masked update of {shape[0]:,} numbers of 32 bits, got something else")
        return tensor.numpy().view(np.uint32)


def _signature(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) != 128:
        raise ValueError(f"expected a signature of 128 hexadecimal digits, got {str(value)[:40]!r}")
    return bytes.fromhex(value)


def _parsed(parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise RejectedReply(str(error)[:300]) from error
