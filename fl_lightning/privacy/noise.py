"""Gaussian noise determined by a secret key: random bits from SHAKE-256 (FIPS 202), shaped by Box and Muller 1958.

``torch.Generator`` is not secure: on the CPU it uses 32 bits of a seed, so all its streams can be tried, and each is a
Mersenne twister, whose state follows from its outputs. Here the stream is an extendable hash of a 256-bit key and the
name of the draw; without the key it cannot be distinguished from random bits.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch


def gaussian(key: str, name: str, count: int) -> torch.Tensor:
    """Independent standard normal values, determined by the key and the name.

    Two uniform values u, v of 53 bits give two normal ones: ``√(−2 ln u) cos 2πv`` and ``√(−2 ln u) sin 2πv``.

    Args:
        key: 64 hexadecimal digits, secret, for one release only, since equal noise cancels out.
        name: purpose of the draw.
        count: number of values, at least 0.

    Returns:
        fp64 on the CPU, shape (count,).

    Raises:
        ValueError: if the key does not have this form; the message does not show it.

    Example:
        >>> gaussian("5e" * 32, "lora_A", 2).equal(gaussian("5e" * 32, "lora_A", 3)[:2])
        False
        >>> gaussian("5e" * 32, "lora_A", 2).equal(gaussian("5e" * 32, "lora_A", 2))
        True
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key):
        raise ValueError(f"seed: expected a key of 64 hexadecimal digits (256 bits), got {len(key)} characters")
    pairs = (count + 1) // 2
    digest = hashlib.shake_256(bytes.fromhex(key) + name.encode()).digest(16 * pairs)
    words = np.frombuffer(digest, dtype="<u8") >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53  # never 0, so the logarithm is finite
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    return torch.from_numpy(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count])
