"""The privacy cost (ε, δ) of noise, from Google's ``dp-accounting`` (the ``privacy`` extra).

The neighboring relation is zero-out everywhere (Kairouz et al. 2021, arXiv 2103.00039, definition 1.1): a client is
asked but contributes nothing. This equals add-or-remove-one with a public number of clients. One client then changes
the clipped sum by at most C. Two bounds hold, and the smaller one is used:

1. T rounds are one Gaussian mechanism with noise multiplier ``z / √T``, whichever clients were asked (Dong, Roth, Su
2019, arXiv
   1905.02383), and ε follows exactly (Balle, Wang 2018, arXiv 1805.06530). No accountant is tighter, not even PLD,
   which takes seconds for small z.
2. If a random subset of clients is drawn without replacement and in secret, the draw adds privacy (Wang,
   Balle, Kasiviswanathan 2019, arXiv 1808.00087, theorem 27, in Rényi divergence). This is proved for replace-one;
   zero-out is the special case of an empty replacement. Replacing one client's update changes the sum by up to 2 C, so
   the sampled Gaussian has noise multiplier ``z / 2``. This bound is smaller if less than a tenth of the clients are
   asked with z = 1, or less than a fifth with z = 4.

Noise in shares is a sum of discrete Gaussians, for which neither holds; see `epsilon_of_shares`.
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
"""Orders of the Rényi divergence, each of which gives a bound. Compared with dp-accounting's 166 orders they take a
quarter of the time and increase ε by less than 1 %."""

_SUM_OF_SHARES = 1e-9
"""Relative cost of a sum of discrete Gaussians over that of one, with much to spare: it is below 10⁻¹⁰⁰⁰ in all rounds
that `noise_shares` plans."""

_PRECISION = 1e-4
"""Relative tolerance of the noise multiplier, on the safe side."""


def epsilon(noise_multiplier: float, rounds: int, delta: float, *, clients: int, asked: int) -> float:
    """The smallest known ε for which T rounds are (ε, δ)-differentially private for each client of a department.

    Args:
        noise_multiplier: z; with adaptive clipping that of mean and count together. 0 means infinite ε.
        rounds: T, number of rounds that release something.
        delta: δ in (0, 1); only values below 1 / clients are meaningful.
        clients: number of clients of the department.
        asked: number of clients asked in a round. If the draw is not secret (a known seed, a log), pass `clients`: then
            only the noise counts.

    Raises:
        ValueError: an argument is out of range.
        InputError: dp-accounting is not installed.

    Example:
        >>> round(epsilon(4.0, 10, 1e-5, clients=8, asked=8), 3)
        3.341
    """
    _check(rounds, delta, clients, asked)
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier: expected a finite number of at least 0, got {noise_multiplier}")
    return _epsilon(noise_multiplier, rounds, delta, clients, asked)


def noise_multiplier_for(epsilon: float, rounds: int, delta: float, *, clients: int, asked: int) -> float:
    """The smallest z for which T rounds cost at most ε, up to a relative error of 1e-4 on the safe side.

    Args:
        epsilon: ε > 0, finite.
        rounds: T, at least 1.
        delta: as in `epsilon`.
        clients: as in `epsilon`.
        asked: as in `epsilon`.

    Raises:
        ValueError: an argument is out of range.
        InputError: dp-accounting is not installed.

    Example:
        >>> round(noise_multiplier_for(3.3414, 10, 1e-5, clients=8, asked=8), 2)
        4.0
    """
    _check(rounds, delta, clients, asked)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon: expected a positive finite number, got {epsilon}")
    if rounds == 0:
        raise ValueError("rounds: expected at least 1, got 0")
    enough = 1.0
    while _epsilon(enough, rounds, delta, clients, asked) > epsilon:
        enough *= 2
    too_small = enough / 2
    while _epsilon(too_small, rounds, delta, clients, asked) <= epsilon:
        enough, too_small = too_small, too_small / 2
    while enough - too_small > _PRECISION * too_small:
        center = (enough + too_small) / 2
        if _epsilon(center, rounds, delta, clients, asked) <= epsilon:
            enough = center
        else:
            too_small = center
    return enough


def epsilon_of_shares(noise_multiplier: float, rounds: int, delta: float) -> float:
    """ε of T rounds with discrete Gaussian noise that clients add in shares, at worst.

    Each round is ``½ / z²`` zero-concentrated differentially private (Kairouz, Liu, Steinke 2021, arXiv 2102.06387,
    theorem 1), and costs add up. That gives (ε, δ) by Canonne, Kamath, Steinke 2020 (arXiv 2004.00010, proposition 12),
    at the best order. It is up to a tenth more than `epsilon` of the same z, since the exact curve of a Gaussian is not
    proved for sums of discrete ones. No amplification: the server sees who takes part.

    Args:
        noise_multiplier: z, of the noise that is left at worst in clipping norms, at least 0; see
            `fl_lightning.privacy.secure_aggregation.noise_shares`.
        rounds: T.
        delta: δ in (0, 1).

    Raises:
        ValueError: an argument is out of range.
        InputError: dp-accounting is not installed.

    Example:
        >>> round(epsilon_of_shares(4.0, 10, 1e-5), 3)  # 3.341 with the noise of a server
        3.617
    """
    _check(rounds, delta, 1, 1)
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier: expected a finite number of at least 0, got {noise_multiplier}")
    accounting = _dp_accounting()
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    rho = rounds / (2 * noise_multiplier**2) * (1 + _SUM_OF_SHARES)
    best = math.sqrt(math.log(1 / delta) / rho)  # minimizes ρ α + log(1 / δ) / (α − 1)
    orders = [1 + best * 2 ** (i / 64) for i in range(-128, 129)]
    at_best = float(accounting.rdp.compute_epsilon(orders, [rho * order for order in orders], delta)[0])
    return min(at_best, rho + 2 * math.sqrt(rho * math.log(1 / delta)))  # the former is infinite for orders near 1


def _check(rounds: int, delta: float, clients: int, asked: int) -> None:
    if rounds < 0:
        raise ValueError(f"rounds: expected at least 0, got {rounds}")
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number in (0, 1), got {delta}")
    if not 1 <= asked <= clients:
        raise ValueError(f"asked: expected 1 to {clients}, the number of clients, got {asked}")


def _epsilon(z: float, rounds: int, delta: float, clients: int, asked: int) -> float:
    """The smaller of the two bounds, for checked arguments."""
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
    """The library, imported only if needed since it takes a second."""
    try:
        import dp_accounting
    except ImportError as error:
        raise InputError(
            "privacy: expected dp-accounting, which is not installed; pip install 'fl_lightning[privacy]'"
        ) from error
    return dp_accounting
