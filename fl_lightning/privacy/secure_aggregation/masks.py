"""Masks: uniform elements of the ring, determined by a secret of 256 bits (ChaCha20, RFC 8439).

A secret makes one mask, of one round, so the nonce may be constant.
"""

from __future__ import annotations

import sys

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fl_lightning.privacy.secure_aggregation.ring import Ring

_BLOCK = 1 << 16
"""Elements at a time (256 KiB), which stay in the cache until they are added."""


def add_mask(total: Ring, secret: bytes, *, sign: int = 1) -> None:
    """Add the mask of a secret to ring elements, in place, or take it away.

    Args:
        total: shape (n,); changed.
        secret: 32 bytes, for this mask only.
        sign: 1 adds, -1 subtracts.

    Example:
        >>> total = np.zeros(3, dtype=np.uint32)
        >>> add_mask(total, bytes(32))
        >>> [hex(word) for word in total]  # the first test vector of RFC 8439, A.1
        ['0xade0b876', '0x903df1a0', '0xe56a5d40']
        >>> add_mask(total, bytes(32), sign=-1)
        >>> total.any()
        np.False_
    """
    stream = Cipher(algorithms.ChaCha20(secret, bytes(16)), mode=None).encryptor()
    zeros = bytes(4 * min(len(total), _BLOCK))
    buffer = bytearray(len(zeros))
    for start in range(0, len(total), _BLOCK):
        part = total[start : start + _BLOCK]
        stream.update_into(memoryview(zeros)[: 4 * len(part)], buffer)
        mask = np.frombuffer(buffer, dtype="<u4", count=len(part))
        if sys.byteorder == "big":
            mask = mask.astype(np.uint32)
        if sign > 0:
            part += mask
        else:
            part -= mask
