"""What clients and server send each other in a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fl_lightning.privacy.secure_aggregation.ring import Ring


@dataclass(frozen=True)
class Advertisement:
    """Step 1, client to server to all clients: the public keys of the round, signed.

    Attributes:
        mask_key: X25519, for masks of pairs.
        share_key: X25519, for the encryption of shares.
        signature: Ed25519, of the client's identity.
    """

    mask_key: bytes
    share_key: bytes
    signature: bytes


@dataclass(frozen=True)
class KeyShares:
    """Step 2, client to server: shares of its two secrets for each neighbor, which only the neighbor can read.

    Attributes:
        encrypted: {neighbor: share of the private mask key, share of the seed of the own mask}.
        seed_digest: SHA-256 of the seed of the own mask, by which the server sees whether it was restored right.
    """

    encrypted: Mapping[str, bytes]
    seed_digest: bytes


@dataclass(frozen=True)
class UnmaskRequest:
    """Step 4, server to client: who is in the sum and who is not, with the clients' signatures.

    Attributes:
        survivors: clients in the sum.
        dropped: clients that have sent shares and no input.
        signatures: {client: signature on the list of survivors}, of the neighbors and of the client itself.
    """

    survivors: Sequence[str]
    dropped: Sequence[str]
    signatures: Mapping[str, bytes]


@dataclass(frozen=True)
class UnmaskShares:
    """Step 4, client to server: for each neighbor one share, and for itself that of its own mask.

    Attributes:
        seeds: {survivor: share of the seed of its own mask}.
        keys: {dropped client: share of its private mask key}.
    """

    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]


def num_bytes(message: Any) -> int:
    """Bytes of the values and names in a message, without those of an encoding.

    Example:
        >>> num_bytes(Advertisement(bytes(32), bytes(32), bytes(64))), num_bytes({"hr/a": bytes(10)})
        (128, 14)
    """
    if isinstance(message, np.ndarray):
        return int(message.nbytes)
    if isinstance(message, (bytes, str)):
        return len(message)
    if isinstance(message, Mapping):
        return sum(num_bytes(key) + num_bytes(value) for key, value in message.items())
    if isinstance(message, Sequence):
        return sum(map(num_bytes, message))
    return sum(num_bytes(getattr(message, field.name)) for field in fields(message))


__all__ = ["Advertisement", "KeyShares", "Ring", "UnmaskRequest", "UnmaskShares", "num_bytes"]
