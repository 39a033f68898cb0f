"""What the noise is worth as (ε, δ), by Google's ``dp-accounting``: the ``privacy`` extra.

One neighbouring relation throughout, zero-out (Kairouz et al. 2021, arXiv 2103.00039, definition 1.1): a client that is
asked as ever, but of which nothing comes. Add-or-remove-one with the number of clients public is the same thing. One
client then moves the clipped sum by at most C. Two bounds hold for it, and the smaller one counts:

1. T rounds are one Gaussian mechanism with noise multiplier ``z / √T``, whoever was asked (Dong, Roth, Su 2019, arXiv
   1905.02383), and ε follows exactly (Balle, Wang 2018, arXiv 1805.06530). No accountant is tighter, not even PLD,
   which takes seconds where z is small.
2. Where a part of the clients is drawn, at random, without replacement and in secret, the draw hides as well (Wang,
   Balle, Kasiviswanathan 2019, arXiv 1808.00087, theorem 27, in Rényi divergence). This is proved for replace-one, of
   which zero-out is the case that the other record is empty. Replacing one client's update moves the sum by up to 2 C,
   so the Gaussian that is sampled has noise multiplier ``z / 2``. It wins where
   less than a tenth is asked with z = 1, less than a fifth with z = 4.
"""

from __future__ import annotations

import math
from typing import Any

from fl_lightning.errors import InputError

_ORDERS = (
    *(1 + i / 10 for i in range(1, 10)),
    *(i / 2 for i in range(4, 24)),
    *range(12, 33, 2),
    *range(36, 65, 4),
    *(96, 128),
)
"""Orders of the Rényi divergence. Every one gives a bound; beside dp-accounting's 166 they take a quarter of the time
and cost less than a hundredth of ε."""

_PRECISION = 1e-4
"""How far above the least noise multiplier, relatively, the one that is found may be."""


def epsilon(noise_multiplier: float, rounds: int, delta: float, *, clients: int, asked: int) -> float:
    """The least ε known with which so many rounds are (ε, δ)-differentially private for each client of a department.

    Args:
        noise_multiplier: z; with adaptive clipping that of mean and count together. 0 gives infinity.
        rounds: T, how many rounds release something.
        delta: δ in (0, 1), below 1 / clients if it shall mean anything.
        clients: how many the department has.
        asked: how many of them a round asks. If the draw is no secret (a seed that others know, a log), give `clients`
            here: then only the noise counts.

    Raises:
        ValueError: an argument is out of range.
        InputError: dp-accounting is not installed.

    Example:
        >>> round(epsilon(4.0, 10, 1e-5, clients=8, asked=8), 3)
        3.341
    """
    _check(rounds, delta, clients, asked)
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier: got {noise_multiplier}, wanted a finite number of at least 0")
    return _epsilon(noise_multiplier, rounds, delta, clients, asked)


def noise_multiplier_for(epsilon: float, rounds: int, delta: float, *, clients: int, asked: int) -> float:
    """The least z, to one in 10,000 and never too small, with which so many rounds cost at most ε.

    Args:
        epsilon: ε > 0, finite.
        rounds: T, at least 1.
        delta: as for the ε of a given z.
        clients: as there.
        asked: as there.

    Raises:
        ValueError: an argument is out of range.
        InputError: dp-accounting is not installed.

    Example:
        >>> round(noise_multiplier_for(3.3414, 10, 1e-5, clients=8, asked=8), 2)
        4.0
    """
    _check(rounds, delta, clients, asked)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon: got {epsilon}, wanted a positive finite number")
    if rounds == 0:
        raise ValueError("rounds: got 0, wanted at least 1")
    enough = 1.0
    while _epsilon(enough, rounds, delta, clients, asked) > epsilon:
        enough *= 2
    too_small = enough / 2
    while _epsilon(too_small, rounds, delta, clients, asked) <= epsilon:
        enough, too_small = too_small, too_small / 2
    while enough - too_small > _PRECISION * too_small:
        middle = (enough + too_small) / 2
        if _epsilon(middle, rounds, delta, clients, asked) <= epsilon:
            enough = middle
        else:
            too_small = middle
    return enough


def _check(rounds: int, delta: float, clients: int, asked: int) -> None:
    if rounds < 0:
        raise ValueError(f"rounds: got {rounds}, wanted at least 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta: got {delta}, wanted a number in (0, 1)")
    if not 1 <= asked <= clients:
        raise ValueError(f"asked: got {asked} of {clients} clients, wanted from 1 to as many as there are")


def _epsilon(z: float, rounds: int, delta: float, clients: int, asked: int) -> float:
    """The smaller one of the bounds that hold, arguments checked."""
    accounting = _dp_accounting()
    if rounds == 0:
        return 0.0
    if z == 0:
        return math.inf
    unsampled = float(accounting.get_epsilon_gaussian(z / math.sqrt(rounds), delta))
    if asked == clients or unsampled == 0:
        return unsampled
    event = accounting.SampledWithoutReplacementDpEvent(clients, asked, accounting.GaussianDpEvent(z / 2))
    accountant = accounting.rdp.RdpAccountant(_ORDERS, accounting.NeighboringRelation.REPLACE_ONE)
    return min(unsampled, float(accountant.compose(event, rounds).get_epsilon(delta)))


def _dp_accounting() -> Any:
    """The library, or how to get it; a second to import, so only where it is needed."""
    try:
        import dp_accounting
    except ImportError as error:
        raise InputError("privacy: dp-accounting is not installed; pip install 'fl_lightning[privacy]'") from error
    return dp_accounting
