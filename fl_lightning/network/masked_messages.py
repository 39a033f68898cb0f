"""Messages of secure aggregation as JSON: keys, shares, the list of a sum, and what takes the masks off.

=========  ========================================  ===================================================
step       from the server                           from the site
=========  ========================================  ===================================================
``fit``    a task, and how many sites are asked      public keys of this round, when it has trained
``share``  the keys of all of them                   shares of its secrets, encrypted for its neighbors
``mask``   shares that are for this site             its masked update
``sign``   the sites whose update is in the sum      its signature on that list
``unmask`` the list, with the others' signatures     shares of masks that are in the sum, or of the keys
                                                     of sites that have dropped out
=========  ========================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from fl_lightning.privacy.secure_aggregation.messages import Advertisement, KeyShares, UnmaskRequest, UnmaskShares
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

MaskedStep: TypeAlias = Literal["share", "mask", "sign", "unmask"]
"""What a site is asked after its fit, in this order."""
STEPS: tuple[MaskedStep, ...] = ("share", "mask", "sign", "unmask")
MASKED = "masked"
"""Name of the only tensor that a site sends."""
MAX_ATTEMPT = 2**53
"""Largest number of an attempt, as JSON has it exactly."""
MAX_BYTES = 4096
"""Of a key, a share or a signature."""


class AlreadySigned(SecureAggregationError):
    """A site has signed another sum of this round. The server knows it by this name, and goes on to the next round."""


def group_name(department: str, round_num: int) -> str:
    """What is added up: the updates of a department in a round. Attempts are counted for each anew.

    Example:
        >>> group_name("hr", 3)
        'hr in round 3'
    """
    return f"{department} in round {round_num}"


def keys_to_json(message: Advertisement) -> dict[str, str]:
    """Public keys as JSON."""
    return {name: value.hex() for name, value in vars(message).items()}


def keys_from_json(value: Any) -> Advertisement:
    """Public keys.

    Raises:
        ValueError: if it is something else.

    Example:
        >>> keys = Advertisement(bytes(32), bytes(32), bytes(64))
        >>> keys_from_json(keys_to_json(keys)) == keys
        True
    """
    names = ("mask_key", "share_key", "signature")
    if not isinstance(value, Mapping) or value.keys() != set(names):
        raise ValueError(f"expected {', '.join(names)}, got {str(value)[:80]}")
    return Advertisement(*(_bytes(value[name]) for name in names))


def shares_to_json(message: KeyShares) -> dict[str, Any]:
    """Encrypted shares as JSON."""
    return {"shares": bytes_to_json(message.encrypted), "seed_digest": message.seed_digest.hex()}


def shares_from_json(value: Any) -> KeyShares:
    """Encrypted shares.

    Raises:
        ValueError: if it is something else.

    Example:
        >>> shares = KeyShares({"hr/b": b"ab"}, bytes(32))
        >>> shares_from_json(shares_to_json(shares)) == shares
        True
    """
    value = value if isinstance(value, Mapping) else {}
    return KeyShares(bytes_from_json(value.get("shares")), _bytes(value.get("seed_digest")))


def request_to_json(message: UnmaskRequest) -> dict[str, Any]:
    """What a site is asked for in the last step, as JSON."""
    signatures = bytes_to_json(message.signatures)
    return {"survivors": list(message.survivors), "dropped": list(message.dropped), "signatures": signatures}


def request_from_json(value: Any) -> UnmaskRequest:
    """What a site is asked for in the last step.

    Raises:
        ValueError: if it is something else.
    """
    value = value if isinstance(value, Mapping) else {}
    survivors, dropped = names_from_json(value.get("survivors")), names_from_json(value.get("dropped"))
    return UnmaskRequest(survivors, dropped, bytes_from_json(value.get("signatures")))


def unmask_to_json(message: UnmaskShares) -> dict[str, Any]:
    """Shares of masks and keys as JSON."""
    return {"seeds": bytes_to_json(message.seeds), "keys": bytes_to_json(message.keys)}


def unmask_from_json(value: Any) -> UnmaskShares:
    """Shares of masks and keys.

    Raises:
        ValueError: if it is something else.
    """
    value = value if isinstance(value, Mapping) else {}
    return UnmaskShares(bytes_from_json(value.get("seeds")), bytes_from_json(value.get("keys")))


def bytes_to_json(values: Mapping[str, bytes]) -> dict[str, str]:
    """{name: bytes} in hexadecimal digits."""
    return {name: value.hex() for name, value in values.items()}


def bytes_from_json(value: Any) -> dict[str, bytes]:
    """{name: bytes}.

    Raises:
        ValueError: if it is something else.

    Example:
        >>> bytes_from_json({"hr/a": "6162"})
        {'hr/a': b'ab'}
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected hexadecimal digits of clients, got {str(value)[:80]}")
    return {str(name): _bytes(digits) for name, digits in value.items()}


def names_from_json(value: Any) -> list[str]:
    """Client ids.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"expected a list of clients, got {str(value)[:80]}")
    return value


def count_from_json(value: Any, name: str, limit: int = MAX_ATTEMPT) -> int:
    """A positive number.

    Raises:
        ValueError: if it is something else.
    """
    if type(value) is not int or not 1 <= value <= limit:
        raise ValueError(f"{name}: expected an integer from 1 to {limit}, got {str(value)[:40]!r}")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * MAX_BYTES:
        raise ValueError(f"expected hexadecimal digits of at most {MAX_BYTES} bytes, got {str(value)[:80]!r}")
    return bytes.fromhex(value)
