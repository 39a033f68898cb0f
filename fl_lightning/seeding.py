"""Seeds for every random draw, hashed from its purpose.

A draw that depends only on (run seed, round, department, client) gives the same result in any order, in any process,
and after a resume.
"""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**31) for the draw named by `parts`.

    Parts are hashed with their type and length, so ``("ab", "c")`` and ``("a", "bc")`` differ. The range is valid for
    torch, NumPy and scikit-learn.

    Example:
        >>> derive_seed(1234, "fit", 1, "hr", "client_0") == derive_seed(1234, "fit", 1, "hr", "client_0")
        True
    """
    digest = hashlib.sha256(str(int(run_seed)).encode())
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest()[:8], "big") % 2**31
