"""A secret of 256 bits in shares: any t of them restore it, fewer tell nothing (Shamir 1979).

The scheme is that of pycryptodome, over GF(2¹²⁸); a secret is two halves, each with a random polynomial of its own. Its
coefficients come from the operating system, also in simulations: a restored secret does not depend on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from Crypto.Protocol.SecretSharing import Shamir

from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

SECRET_BYTES = 32
"""Of a secret, and of a share of it."""
MAX_TRIES = 500
"""Choices of shares, if several are wrong."""


def split(secret: bytes, holders: Sequence[str], needed: int) -> dict[str, bytes]:
    """{holder: share}, 32 bytes each.

    Args:
        secret: 32 bytes.
        holders: names; a holder's place in this order is the point at which the polynomials are evaluated.
        needed: t, at least 1 and at most the number of holders.

    Example:
        >>> shares = split(bytes(range(32)), ["a", "b", "c"], needed=2)
        >>> is_right = bytes(range(32)).__eq__
        >>> combine({"c": shares["c"], "a": shares["a"]}, ["a", "b", "c"], 2, is_right) == bytes(range(32))
        True
    """
    if len(secret) != SECRET_BYTES or not 1 <= needed <= len(holders):
        raise ValueError(f"expected {SECRET_BYTES} bytes and 1 to {len(holders)} shares, got {len(secret)}, {needed}")
    halves = [dict(Shamir.split(needed, len(holders), half, ssss=False)) for half in (secret[:16], secret[16:])]
    return {name: halves[0][point] + halves[1][point] for point, name in enumerate(holders, start=1)}


def combine(
    shares: Mapping[str, bytes], holders: Sequence[str], needed: int, is_right: Callable[[bytes], bool]
) -> bytes:
    """The secret of `split`, from `needed` shares or more.

    If a holder has given a wrong share, others are tried: those of neighbors in the order of `holders` first, which
    leaves out any one share, then up to `MAX_TRIES` other choices.

    Args:
        shares: {holder: share}.
        holders: as in `split`.
        needed: as in `split`.
        is_right: whether this is the secret, by what its owner has published of it.

    Raises:
        SecureAggregationError: if there are too few shares of 32 bytes, or the right secret is not found.
    """
    points = [(point, shares[name]) for point, name in enumerate(holders, start=1) if name in shares]
    points = [(point, share) for point, share in points if len(share) == SECRET_BYTES]
    if len(points) < needed:
        raise SecureAggregationError(f"expected {needed} shares of a secret, got {len(points)}")
    turns = [[*points, *points][start : start + needed] for start in range(len(points))]
    for chosen in itertools.chain(turns, itertools.islice(itertools.combinations(points, needed), MAX_TRIES)):
        halves = (_combine_half([(point, share[cut]) for point, share in chosen]) for cut in (slice(16), slice(16, 32)))
        if is_right(secret := b"".join(halves)):
            return secret
    raise SecureAggregationError("its owner, or holders of its shares, have given wrong ones")


def _combine_half(points: list[tuple[int, bytes]]) -> bytes:
    return bytes(Shamir.combine(points, ssss=False))
