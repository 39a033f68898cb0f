"""The server in one round of secure aggregation: it passes messages on, adds up masked inputs, and takes off the masks.

It knows the sum at the end, and nothing at all if a step has too few clients. Whatever a client sends that is not right
is dropped like a client that sends nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping

import numpy as np

from fl_lightning.privacy.secure_aggregation import agreement, shares
from fl_lightning.privacy.secure_aggregation.client import (
    advertised_text,
    graph_of,
    pair_mask_secret,
    pair_sign,
    survivors_text,
)
from fl_lightning.privacy.secure_aggregation.masks import add_mask
from fl_lightning.privacy.secure_aggregation.messages import Advertisement, KeyShares, UnmaskRequest, UnmaskShares
from fl_lightning.privacy.secure_aggregation.ring import Ring
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms

log = logging.getLogger(__name__)


class SecureServer:
    """The server's side of a round; each step ends by a call of the method that begins the next one.

    Args:
        terms: of the round.
        roster: {client: its public identity}.

    Raises:
        SecureAggregationError: by every step, if too few clients are left; the round then has no result.
    """

    def __init__(self, terms: Terms, roster: Mapping[str, bytes]) -> None:
        self._terms, self._roster = terms, roster
        self._keys: dict[str, Advertisement] = {}
        self._shares: dict[str, KeyShares] = {}
        self._neighbors: dict[str, list[str]] = {}
        self._total: Ring = np.zeros(terms.size + 1, dtype=np.uint32)
        self._survivors: list[str] = []
        self._signatures: dict[str, bytes] = {}
        self._revealed: dict[str, UnmaskShares] = {}

    def receive_keys(self, client: str, message: Advertisement) -> None:
        """Step 1: a client's public keys."""
        text = advertised_text(self._terms, client, message)
        if client not in self._roster or not agreement.is_signed(self._roster[client], message.signature, text):
            log.warning("secure aggregation: dropping %s: its keys are not signed by it for this round", client)
        elif len(self._keys) < self._terms.invited:
            self._keys[client] = message

    def advertisements(self) -> dict[str, Advertisement]:
        """Step 2: the keys of all clients, for all clients."""
        self._check("have advertised keys", self._keys)
        self._neighbors = graph_of(self._terms, self._keys)
        return dict(sorted(self._keys.items()))

    def receive_shares(self, client: str, message: KeyShares) -> None:
        """Step 2: a client's encrypted shares."""
        if message.encrypted.keys() != set(self._neighbors.get(client, ())):
            log.warning("secure aggregation: dropping %s: expected shares for each of its neighbors", client)
            return
        self._shares[client] = message

    def shares_for(self, client: str) -> dict[str, bytes]:
        """Step 3: {neighbor: its shares for this client}."""
        self._check("have sent shares", self._shares)
        others = (name for name in self._neighbors[client] if name in self._shares)
        return {name: self._shares[name].encrypted[client] for name in others}

    def receive_input(self, client: str, masked: Ring) -> None:
        """Step 3: a client's masked input, which is added and not kept."""
        if client not in self._shares or client in self._survivors or masked.shape != self._total.shape:
            log.warning("secure aggregation: dropping the input of %s, which does not belong to this round", client)
            return
        self._total += masked
        self._survivors = sorted([*self._survivors, client])

    def survivors(self) -> list[str]:
        """Step 4: the clients in the sum, for all of them to sign."""
        self._check("have sent an input", self._survivors)
        return list(self._survivors)

    def receive_signature(self, client: str, signature: bytes) -> None:
        """Step 4: a client's signature on the list."""
        text = survivors_text(self._terms, self._survivors)
        if client in self._survivors and agreement.is_signed(self._roster[client], signature, text):
            self._signatures[client] = signature

    def request_for(self, client: str) -> UnmaskRequest:
        """Step 4: what the client is asked for."""
        self._check("have signed", self._signatures)
        holders = self._holders(client)
        dropped = [name for name in holders if name in self._shares and name not in self._survivors]
        signatures = {name: self._signatures[name] for name in holders if name in self._signatures}
        return UnmaskRequest(self._survivors, dropped, signatures)

    def receive_unmask(self, client: str, message: UnmaskShares) -> None:
        """Step 4: a client's shares."""
        if client in self._signatures:
            self._revealed[client] = message

    def result(self) -> Ring:
        """The sum of the inputs of `survivors`, shape (size + 1,).

        Raises:
            SecureAggregationError: if a secret cannot be restored; nothing is learned.
        """
        self._check("have sent shares of secrets", self._revealed)
        total, keys = self._total.copy(), {}
        seeds = {name: self._restore(name, "seeds") for name in self._survivors}
        for name in self._shares.keys() - set(self._survivors):
            if any(other in self._survivors for other in self._neighbors[name]):
                keys[name] = self._restore(name, "keys")
        for seed in seeds.values():
            add_mask(total, seed, sign=-1)
        for name, key in keys.items():
            for other in self._neighbors[name]:
                if other in self._survivors:
                    secret = pair_mask_secret(self._terms, key, self._keys[other].mask_key, name, other)
                    add_mask(total, secret, sign=-pair_sign(other, name))
        return total

    def _restore(self, client: str, kind: str) -> bytes:
        """A client's secret from the shares of its neighbors, checked against what it has published before."""
        holders = self._holders(client)
        held = {
            name: getattr(self._revealed[name], kind)[client]
            for name in holders
            if name in self._revealed and client in getattr(self._revealed[name], kind)
        }

        def is_right(secret: bytes) -> bool:
            if kind == "seeds":
                return hashlib.sha256(secret).digest() == self._shares[client].seed_digest
            return agreement.public_key(secret) == self._keys[client].mask_key

        try:
            return shares.combine(held, holders, self._terms.shares_needed(len(holders)), is_right)
        except SecureAggregationError as error:
            raise SecureAggregationError(f"secure aggregation fails, the mask of {client} stays: {error}") from error

    def _holders(self, client: str) -> list[str]:
        return sorted([*self._neighbors[client], client])

    def _check(self, what: str, clients: Collection[str]) -> None:
        """Fail if too few clients are left."""
        if len(clients) < (needed := self._terms.clients_needed):
            raise SecureAggregationError(
                f"secure aggregation of {self._terms.group}: expected at least {needed} clients that {what}, got "
                f"{len(clients)}; nothing is learned of any update"
            )
