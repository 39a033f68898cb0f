"""A client in one round of secure aggregation.

It trusts the roster and its own limits, not the server. Every step is taken once and in order; after a refusal none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fl_lightning.privacy.secure_aggregation import agreement, shares
from fl_lightning.privacy.secure_aggregation.graph import degree_for, neighbors
from fl_lightning.privacy.secure_aggregation.masks import add_mask
from fl_lightning.privacy.secure_aggregation.messages import Advertisement, KeyShares, UnmaskRequest, UnmaskShares
from fl_lightning.privacy.secure_aggregation.noise_shares import noise_share, plan_noise
from fl_lightning.privacy.secure_aggregation.participant import Participant
from fl_lightning.privacy.secure_aggregation.randomness import Random, system_random
from fl_lightning.privacy.secure_aggregation.ring import Ring, quantize
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms


def advertised_text(terms: Terms, client_id: str, message: Advertisement) -> bytes:
    """What a client signs in step 1."""
    return terms.context("advertise", client_id, message.mask_key, message.share_key)


def survivors_text(terms: Terms, survivors: Collection[str]) -> bytes:
    """What a client signs in step 4."""
    return terms.context("survivors", *sorted(survivors))


def pair_mask_secret(terms: Terms, private: bytes, public: bytes, client: str, other: str) -> bytes:
    """The secret of the mask of two clients, from the private key of one and the public key of the other."""
    return agreement.common_secret(private, public, terms.context("pair mask", *sorted((client, other))))


def pair_sign(client: str, other: str) -> int:
    """1 if the client adds the mask that it has in common with the other, -1 if it takes it away."""
    return 1 if client < other else -1


def graph_of(terms: Terms, advertisements: Mapping[str, Advertisement]) -> dict[str, list[str]]:
    """{client: its neighbors}, from the keys of the round."""
    keys = [part for name in sorted(advertisements) for part in (name, advertisements[name].mask_key)]
    seed = hashlib.sha256(terms.context("graph", *keys)).digest()
    return neighbors(advertisements, seed, degree_for(len(advertisements), terms))


class SecureClient:
    """The client's side of a round: `advertise`, `share_keys`, `masked_input`, `sign_survivors`, `unmask`.

    Args:
        member: its identity and limits.
        terms: of the round, as it knows them itself.
        random: where its secrets come from.

    Raises:
        SecureAggregationError: if it takes no part in such a round. So do all steps if the server has not followed
            the protocol; the client then takes no further part.
    """

    def __init__(self, member: Participant, terms: Terms, random: Random = system_random) -> None:
        member.join(terms)
        self.client_id, self._member, self._terms = member.client_id, member, terms
        self._mask_key, self._share_key = random("mask key"), random("share key")
        self._seed, self._random = random("own mask"), random
        self._step = "advertise"
        self._keys: dict[str, Advertisement] = {}
        self._neighbors: list[str] = []
        self._received: dict[str, tuple[bytes, bytes]] = {}
        self._survivors: frozenset[str] = frozenset()

    def advertise(self) -> Advertisement:
        """Step 1: the public keys of the round, signed."""
        self._enter("advertise", "share_keys")
        keys = agreement.public_key(self._mask_key), agreement.public_key(self._share_key)
        text = advertised_text(self._terms, self.client_id, Advertisement(*keys, b""))
        self._own = Advertisement(*keys, agreement.sign(self._member.identity, text))
        return self._own

    def share_keys(self, advertisements: Mapping[str, Advertisement]) -> KeyShares:
        """Step 2: shares of the private mask key and of the seed of the own mask, encrypted for each neighbor.

        Args:
            advertisements: {client: what it has advertised}, those of all clients that take part.
        """
        self._enter("share_keys", "masked_input")
        terms, needed = self._terms, self._terms.clients_needed
        if not needed <= len(advertisements) <= terms.invited:
            count = len(advertisements)
            raise self._refuse(f"expected the keys of {needed} to {terms.invited} clients, got {count}")
        if advertisements.get(self.client_id) != self._own:
            raise self._refuse("the server gives others different keys for this client, or none")
        for name, message in advertisements.items():
            identity = self._member.roster.get(name)
            if identity is None:
                raise self._refuse(f"{name} is not in the roster")
            if not agreement.is_signed(identity, message.signature, advertised_text(terms, name, message)):
                raise self._refuse(f"the keys of {name} are not signed by {name} for this round")
        used = [key for message in advertisements.values() for key in (message.mask_key, message.share_key)]
        if len(set(used)) < len(used):
            raise self._refuse("expected different keys of all clients, got a key twice")
        self._keys = dict(advertisements)
        self._neighbors = graph_of(terms, advertisements)[self.client_id]
        holders, needed = self._holders, terms.shares_needed(len(self._holders))
        key_shares = shares.split(self._mask_key, holders, needed)
        seed_shares = shares.split(self._seed, holders, needed)
        self._received[self.client_id] = key_shares[self.client_id], seed_shares[self.client_id]
        encrypted = {}
        for name in self._neighbors:
            context = terms.context("shares", self.client_id, name)
            key = agreement.common_secret(self._share_key, advertisements[name].share_key, context)
            encrypted[name] = agreement.encrypt(key, key_shares[name] + seed_shares[name], context)
        return KeyShares(encrypted, hashlib.sha256(self._seed).digest())

    def masked_input(self, encrypted: Mapping[str, bytes], values: npt.NDArray[np.float64], weight: int) -> Ring:
        """Step 3: the weighted update, quantized and masked; with noise, if the terms say so.

        Args:
            encrypted: {neighbor: its shares for this client}; who is missing has dropped out.
            values: the update, shape (size,).
            weight: of the client in the mean.

        Returns:
            Ring elements, shape (size + 1,), each uniform.
        """
        self._enter("masked_input", "sign_survivors")
        terms = self._terms
        if unknown := sorted(encrypted.keys() - set(self._neighbors)):
            raise self._refuse(f"expected shares of neighbors, got those of {unknown[0]}")
        if len(encrypted) + 1 < (needed := terms.shares_needed(len(self._holders))):
            raise self._refuse(f"expected shares of {needed} clients, its own among them, got {len(encrypted) + 1}")
        for name, message in encrypted.items():
            context = terms.context("shares", name, self.client_id)
            key = agreement.common_secret(self._share_key, self._keys[name].share_key, context)
            try:
                text = agreement.decrypt(key, message, context)
            except SecureAggregationError as error:
                raise self._refuse(f"shares of {name}: {error}") from error
            self._received[name] = text[: shares.SECRET_BYTES], text[shares.SECRET_BYTES :]
        total = quantize(values, weight, terms)
        if terms.noise is not None:
            total[:-1] += noise_share(self._random("noise"), plan_noise(terms), terms.size).astype(np.uint32)
        add_mask(total, self._seed)
        for name in encrypted:
            secret = pair_mask_secret(terms, self._mask_key, self._keys[name].mask_key, self.client_id, name)
            add_mask(total, secret, sign=pair_sign(self.client_id, name))
        return total

    def sign_survivors(self, survivors: Sequence[str]) -> bytes:
        """Step 4: a signature on the list of the clients that are in the sum.

        Args:
            survivors: all clients whose masked input the server says that it has.
        """
        self._enter("sign_survivors", "unmask")
        names = frozenset(survivors)
        if len(names) < len(survivors) or not names <= self._keys.keys():
            raise self._refuse("expected different clients that have advertised keys as survivors")
        if self.client_id not in names:
            raise self._refuse("the server says that this client has dropped out")
        if unshared := sorted((names & set(self._neighbors)) - self._received.keys()):
            raise self._refuse(f"{unshared[0]} has sent no shares and cannot be in the sum")
        if len(names) < (needed := self._terms.clients_needed):
            raise self._refuse(f"expected a sum of at least {needed} clients, got {len(names)}")
        if (here := len(names & set(self._holders))) < (needed := self._terms.shares_needed(len(self._holders))):
            raise self._refuse(f"expected at least {needed} neighbors in the sum, got {here}")
        self._survivors = names
        return agreement.sign(self._member.identity, survivors_text(self._terms, names))

    def unmask(self, request: UnmaskRequest) -> UnmaskShares:
        """Step 4: one share for each neighbor, if enough neighbors have signed the same list.

        Args:
            request: whose own masks and whose keys the server wants to restore.
        """
        self._enter("unmask", "end")
        survivors, dropped, known = set(request.survivors), set(request.dropped), set(self._received)
        if both := sorted(survivors & dropped):
            raise self._refuse(f"the server asks for both secrets of {both[0]}")
        if survivors != self._survivors:
            raise self._refuse("the server asks for other survivors than those that were signed")
        if (dropped & set(self._holders)) != known - survivors:
            raise self._refuse("the server names others as dropped out than those who have sent shares and no input")
        text = survivors_text(self._terms, survivors)
        signed = [
            name
            for name in self._holders
            if name in survivors
            and agreement.is_signed(self._member.roster[name], request.signatures.get(name, b""), text)
        ]
        if len(signed) < (needed := self._terms.shares_needed(len(self._holders))):
            raise self._refuse(f"expected {needed} signatures on the list of survivors, got {len(signed)}")
        seeds = {name: self._received[name][1] for name in sorted(known & survivors)}
        keys = {name: self._received[name][0] for name in sorted(known - survivors)}
        return UnmaskShares(seeds, keys)

    @property
    def _holders(self) -> list[str]:
        """Who holds shares of this client's secrets: its neighbors and itself."""
        return sorted([*self._neighbors, self.client_id])

    def _enter(self, step: str, following: str) -> None:
        """Begin a step that is taken once."""
        if self._step != step:
            raise self._refuse(f"expected the step {self._step} of this round, got {step}")
        self._step = following

    def _refuse(self, reason: str) -> SecureAggregationError:
        """Take no further part."""
        self._step = "refused"
        return self._member.refuse(reason)
