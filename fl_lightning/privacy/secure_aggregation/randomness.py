"""Where the secrets of a round come from: the operating system, or a seed in a simulation.

Between machines only `system_random` is secure. Under ``fit`` all clients are in one process, which knows every update
anyway, so `seeded_random` makes the run repeatable and protects nobody. The sum does not depend on either.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import TypeAlias

Random: TypeAlias = Callable[[str], bytes]
"""From the purpose of a secret to 32 bytes."""


def system_random(purpose: str) -> bytes:
    """32 bytes from the operating system; each call gives others.

    Example:
        >>> len(system_random("mask")), system_random("mask") == system_random("mask")
        (32, False)
    """
    return secrets.token_bytes(32)


def seeded_random(run_seed: int, *parts: str | int) -> Random:
    """Secrets hashed from a run's seed, for simulations only.

    Example:
        >>> seeded_random(7, "hr/a", 1)("mask") == seeded_random(7, "hr/a", 1)("mask")
        True
        >>> seeded_random(7, "hr/a", 1)("mask") == seeded_random(7, "hr/a", 2)("mask")
        False
    """

    def draw(purpose: str) -> bytes:
        digest = hashlib.sha256(f"secure aggregation in one process {run_seed}".encode())
        for part in (*parts, purpose):
            text = f"{type(part).__name__}:{part}".encode()
            digest.update(len(text).to_bytes(4, "big") + text)
        return digest.digest()

    return draw
