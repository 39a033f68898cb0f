"""Discrete Gaussian noise: integers with probability proportional to ``exp(−x² / 2 σ²)``, exactly.

Canonne, Kamath, Steinke 2020 (arXiv 2004.00010) show that it is as private as the continuous one, which no computer
can draw. Their sampler as in OpenDP takes 19 µs a number and draws from the operating system, so that a resumed run
would have other noise. This one draws blocks from a key, 0.06 µs a number, and is as exact:

1. ``|x| = k σ + j``. j is uniform in [0, σ) (Lemire 2019, arXiv 1805.10941), k has fractions of powers of two as
   probabilities, ``Q(0) = 18/32, Q(1) = 11/32, Q(k) = 3/32 · 7/8 · 8^(2−k)``, so that both come from random bits.
   (Karney 2016, arXiv 1303.6257, has the same k and j; his k is drawn by comparisons.)
2. x is kept with probability ``exp(−x² / 2 σ²) Q(0) / Q(k)``, which is at most 1. On average 0.7 are.
3. That is decided by comparing it with a uniform number of which 32 bits are drawn. fp64 is right where both are
   further apart than its error; otherwise, once in 4 · 10⁹, more bits and as many digits as it takes decide.

So the result does not depend on how a machine rounds, and the same key gives the same noise everywhere.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

MAX_SIGMA = 2**31
"""Largest σ: a uniform j below it comes from 32 bits."""

_BLOCK = 1 << 15
"""Candidates at a time, whose arrays stay in the cache."""
_MARGIN = 2.0**-40
"""More than the error of a probability in fp64, which is below 2⁻⁴⁵."""

Words = npt.NDArray[np.uint32]


def discrete_gaussian(key: bytes, sigma: int, count: int) -> npt.NDArray[np.int64]:
    """Independent values of the discrete Gaussian, determined by the key.

    Args:
        key: 32 bytes, secret, for one release only.
        sigma: σ, from 1 to `MAX_SIGMA`; the standard deviation is smaller by less than 10⁻⁷ of it.
        count: number of values.

    Returns:
        Shape (count,).

    Raises:
        ValueError: if σ is out of range, or the key is of another length.

    Example:
        >>> values = discrete_gaussian(bytes(32), 1000, 100_000)
        >>> bool(abs(values.mean()) < 12), bool(abs(values.std() - 1000) < 10)
        (True, True)
        >>> discrete_gaussian(bytes(32), 1000, 5).tolist() == values[:5].tolist()
        True
    """
    if not 1 <= sigma <= MAX_SIGMA:
        raise ValueError(f"sigma: expected an integer from 1 to 2³¹, got {sigma}")
    bits, values = _Bits(key), np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        kept = _kept_of_block(bits, sigma)[: count - filled]
        values[filled : filled + len(kept)] = kept
        filled += len(kept)
    return values


def _kept_of_block(bits: _Bits, sigma: int) -> npt.NDArray[np.int64]:
    """Those of a block of candidates that are kept, in order."""
    first, second, uniform = bits.words(_BLOCK), bits.words(_BLOCK), bits.words(_BLOCK)
    choice = first & 31
    k = (choice >= 18).astype(np.int64)
    tail = np.flatnonzero(choice >= 29)
    k[tail] = 2 + _zero_digits(first[tail] >> np.uint32(6), bits)
    product = second.astype(np.uint64) * np.uint64(sigma)  # NumPy 1 would keep 32 bits
    is_uniform = (product & np.uint64(2**32 - 1)) >= np.uint64(2**32 % sigma)
    size: npt.NDArray[np.int64] = k * sigma + (product >> np.uint64(32)).astype(np.int64)
    is_negative = (first & 32) != 0
    is_candidate = is_uniform & ~(is_negative & (size == 0))  # 0 has one sign
    ratio = size / sigma
    keep = np.exp(-0.5 * ratio * ratio) * _FACTORS[np.minimum(k, len(_FACTORS) - 1)]
    low = uniform * 2.0**-32
    is_kept = low + 2.0**-32 <= keep - _MARGIN
    for place in np.flatnonzero(~is_kept & (low < keep + _MARGIN) & is_candidate):
        is_kept[place] = _is_below(int(uniform[place]), int(k[place]), int(size[place]), sigma, bits)
    is_kept &= is_candidate
    kept: npt.NDArray[np.int64] = np.where(is_negative, -size, size)[is_kept]
    return kept


def _factor(k: int) -> Fraction:
    """Q(0) / Q(k)."""
    return (Fraction(1), Fraction(18, 11))[k] if k < 2 else Fraction(48, 7) * 8 ** (k - 2)


_FACTORS = np.array([float(_factor(k)) for k in range(64)])


def _zero_digits(digits: Words, bits: _Bits) -> npt.NDArray[np.int64]:
    """How many of the octal digits from the lowest on are zero, before the first that is not."""
    counts, is_zero = np.zeros(len(digits), dtype=np.int64), np.ones(len(digits), dtype=bool)
    for place in range(8):
        is_zero &= (digits >> np.uint32(3 * place)) & np.uint32(7) == 0
        counts += is_zero
    for index in np.flatnonzero(is_zero):
        while bits.more() % 8 == 0:
            counts[index] += 1
    return counts


def _is_below(uniform: int, k: int, size: int, sigma: int, bits: _Bits) -> bool:
    """Whether a uniform number is below the probability of keeping a candidate, for certain.

    Args:
        uniform: its first 32 bits; more are drawn as they are needed.
        k: of the candidate.
        size: k σ + j.
        sigma: σ.
        bits: where more come from.
    """
    length, digits = 32, 30
    while True:
        with localcontext() as context:
            context.prec = digits
            power = (Decimal(-size * size) / Decimal(2 * sigma * sigma)).exp()
        probability = Fraction(power) * _factor(k)
        error = probability * (size * size // (2 * sigma * sigma) + 4) * Fraction(10, 10**digits)
        if Fraction(uniform + 1, 2**length) <= probability - error:
            return True
        if Fraction(uniform, 2**length) >= probability + error:
            return False
        uniform, length, digits = (uniform << 32) | bits.more(), length + 32, digits + 15


class _Bits:
    """Two streams of random words from a key (ChaCha20, RFC 8439): blocks, and words one by one."""

    def __init__(self, key: bytes) -> None:
        nonces = bytes(16), bytes(4) + b"more" + bytes(8)
        self._blocks, self._single = (Cipher(algorithms.ChaCha20(key, n), mode=None).encryptor() for n in nonces)

    def words(self, count: int) -> Words:
        """The next words of the first stream, shape (count,)."""
        return np.frombuffer(self._blocks.update(bytes(4 * count)), dtype="<u4").astype(np.uint32, copy=False)

    def more(self) -> int:
        """The next word of the second stream."""
        return int.from_bytes(self._single.update(bytes(4)), "little")
