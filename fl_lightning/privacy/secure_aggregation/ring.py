"""Weighted updates as integers modulo 2³², whose sums are exact.

A client with weight w and update x (fp64, ``|x_i| ≤ bound``) sends ``q_i = round(w x_i / s)`` and, as the last
element, w itself. The common scale ``s = n · max_weight · bound / (2³¹ − n)`` for n invited clients keeps sums below
2³¹, so that they do not wrap around. The weight comes before rounding: it is hidden in the sum, and a heavy client's
rounding error is not multiplied.

**Error.** Each client's rounding is off by at most 1/2, so an element of the mean of m clients with total weight W is
off by at most ``m s / 2 W``. With the defaults (bound 4, max_weight 1024), 16 clients of 128 records each:
``16 · 16 · 1024 · 4 / (2 · 2³¹ · 2048)``, 1.2e-7. Nothing is clipped: a client whose update exceeds the bound does not
take part.

With noise (`noise_shares`) the scale is another, updates are clipped and rounded towards zero, and the error is that
of the mean of clipped updates without their noise, ``m s / W``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_lightning.privacy.secure_aggregation.noise_shares import clip_and_round, plan_noise
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms

Ring = npt.NDArray[np.uint32]


def scale(terms: Terms) -> float:
    """The value of one unit of the ring, before it is divided by the sum of the weights.

    Example:
        >>> scale(Terms("run", "hr", 1, invited=4, size=1, bound=2.0, max_weight=1)) == 8 / (2**31 - 4)
        True
    """
    if terms.noise is not None:
        return plan_noise(terms).unit
    return terms.invited * terms.max_weight * terms.bound / (2**31 - terms.invited)


def quantize(values: npt.NDArray[np.float64], weight: int, terms: Terms) -> Ring:
    """A weighted update in the ring.

    Args:
        values: shape (size,), fp64.
        weight: from 1 to ``terms.max_weight``.
        terms: of the round.

    Returns:
        Shape (size + 1,); the last element is the weight.

    Raises:
        SecureAggregationError: if the update does not fit; it cannot take part.
    """
    if values.shape != (terms.size,):
        raise SecureAggregationError(f"update: expected {terms.size:,} elements, got shape {values.shape}")
    if not 1 <= weight <= terms.max_weight:
        raise SecureAggregationError(
            f"weight: expected an integer from 1 to {terms.max_weight} (federation.masking.max_weight), got {weight}"
        )
    integers = np.empty(terms.size + 1, dtype=np.int64)
    integers[-1] = weight
    if terms.noise is not None:
        integers[:-1] = clip_and_round(values, plan_noise(terms), terms.noise.clip)
        return integers.astype(np.uint32)
    largest = float(np.abs(values).max())
    if not largest <= terms.bound:
        raise SecureAggregationError(
            f"update: expected elements of at most {terms.bound:g} (federation.masking.bound), got {largest:.3g}"
        )
    integers[:-1] = np.rint(values * (weight / scale(terms)))
    return integers.astype(np.uint32)  # modulo 2³²


def restore(total: Ring, terms: Terms) -> tuple[npt.NDArray[np.float64], int]:
    """(mean, total weight) of the updates whose ring elements add up to `total`.

    Args:
        total: shape (size + 1,).
        terms: of the round.

    Returns:
        The mean in fp64, shape (size,), and the sum of the weights.

    Raises:
        SecureAggregationError: if the sum of the weights is not possible, since masks did not cancel.

    Example:
        >>> terms = Terms("run", "hr", 1, invited=2, size=1, bound=1.0, max_weight=3)
        >>> total = quantize(np.array([0.5]), 1, terms) + quantize(np.array([-0.5]), 3, terms)
        >>> mean, weight = restore(total, terms)
        >>> mean.round(6).tolist(), weight
        ([-0.25], 4)
    """
    weight = int(total[-1])
    if not 1 <= weight <= terms.invited * terms.max_weight:
        raise SecureAggregationError(f"sum of weights: expected masks to cancel, got {weight}")
    return total[:-1].view(np.int32).astype(np.float64) * (scale(terms) / weight), weight


def error_bound(terms: Terms, clients: int, weight: int) -> float:
    """Largest absolute error of an element of the mean.

    Args:
        terms: of the round.
        clients: in the sum.
        weight: sum of their weights.

    Example:
        >>> f"{error_bound(Terms('run', 'hr', 1, invited=16, size=1), clients=16, weight=16 * 128):.1e}"
        '1.2e-07'
    """
    rounding = 0.5 if terms.noise is None else 1 + 2**-10  # the latter, as norms are brought down to Δ
    return clients * scale(terms) * (rounding + 2**-20) / weight  # 2⁻²⁰: fp64 rounds w x / s
