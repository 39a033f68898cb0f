"""Gaussian noise that a secret key determines: SHAKE-256 (FIPS 202) as the source, Box and Muller 1958 for the shape.

``torch.Generator`` is no source for noise that has to hide something: on the CPU it takes 32 bits of a seed, so that
all its streams can be tried, and each is a Mersenne twister, which its own outputs give away. Here the stream is an
extendable hash of a key of 256 bits and the name of the draw: without the key it cannot be told from random bits.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch


def gaussian(key: str, name: str, count: int) -> torch.Tensor:
    """Independent standard normal values; which, depends on the key and the name alone.

    Two uniform values u, v of 53 bits give two normal ones: ``√(−2 ln u) cos 2πv`` and ``√(−2 ln u) sin 2πv``.

    Args:
        key: 64 hexadecimal digits, secret, and for one release only: the same noise twice cancels out.
        name: what the draw is for.
        count: how many values, at least 0.

    Returns:
        fp64 on the CPU, shape (count,).

    Raises:
        ValueError: the key is no such key; it is not shown.

    Example:
        >>> gaussian("5e" * 32, "lora_A", 2).equal(gaussian("5e" * 32, "lora_A", 3)[:2])
        False
        >>> gaussian("5e" * 32, "lora_A", 2).equal(gaussian("5e" * 32, "lora_A", 2))
        True
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key):
        raise ValueError(f"seed: got {len(key)} characters, wanted a key of 64 hexadecimal digits (256 bits)")
    pairs = (count + 1) // 2
    digest = hashlib.shake_256(bytes.fromhex(key) + name.encode()).digest(16 * pairs)
    words = np.frombuffer(digest, dtype="<u8") >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53  # never 0, where the logarithm ends
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    return torch.from_numpy(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count])
