"""The bound on ε from one run: against closed forms and hand-made sums, and never above a mechanism's true ε."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from fl_lightning.privacy.audit.one_run import epsilon_lower_bound, guess_coins, p_value, provable_epsilon


@pytest.mark.parametrize(("guesses", "bound"), [(10, 1.05), (100, 3.49), (1000, 5.81)])
def test_all_right_gives_the_closed_form(guesses, bound):
    rate = 0.05 ** (1 / guesses)  # rate^r = 1 - confidence
    assert provable_epsilon(guesses) == pytest.approx(math.log(rate / (1 - rate)), abs=1e-5)
    assert round(provable_epsilon(guesses), 2) == bound


def test_abstentions_count_only_through_delta():
    assert epsilon_lower_bound(1000, 50, 45) == epsilon_lower_bound(50, 50, 45)
    assert epsilon_lower_bound(1000, 50, 45, 1e-4) < epsilon_lower_bound(50, 50, 45, 1e-4)


def by_hand(epsilon, delta, m, r, v):
    """The theorem, term by term with exact binomial coefficients."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    pmf = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    worst = max(2 / i * sum(pmf[max(0, v - i) : v]) for i in range(1, m + 1))
    return min(1.0, sum(pmf[v:]) + delta * m * worst)


@pytest.mark.parametrize(("m", "r", "v"), [(12, 12, 9), (30, 20, 16), (40, 40, 40), (9, 4, 1)])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.02])
def test_p_value_is_the_theorem(m, r, v, delta):
    for epsilon in (0.0, 0.7, 2.5):
        assert p_value(epsilon, delta, canaries=m, guesses=r, correct=v) == pytest.approx(
            by_hand(epsilon, delta, m, r, v), rel=1e-9
        )


def test_the_bound_is_where_the_p_value_crosses():
    bound = epsilon_lower_bound(60, 60, 50, 1e-5)
    values = [by_hand(bound + step, 1e-5, 60, 60, 50) for step in (-1e-4, 1e-4)]
    assert values[0] < 0.05 < values[1]
    assert epsilon_lower_bound(60, 60, 50, 1e-5, confidence=0.99) < bound


def test_guessing_proves_nothing():
    assert epsilon_lower_bound(100, 100, 50) == 0
    assert epsilon_lower_bound(100, 0, 0) == 0
    assert epsilon_lower_bound(4, 4, 4) == 0  # 1/16 is above 5 %


def test_half_of_the_guesses_say_in():
    assert guess_coins(np.array([5.0, 1.0, 4.0, 2.0, 3.0]), 5).tolist() == [1, -1, 1, -1, -1]
    assert guess_coins(np.zeros(3), 2).tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: guess_coins(np.array([np.nan]), 1),
        lambda: guess_coins(np.zeros(2), 3),
        lambda: epsilon_lower_bound(10, 11, 1),
        lambda: epsilon_lower_bound(10, 10, 11),
        lambda: epsilon_lower_bound(10, 10, 5, -0.1),
        lambda: epsilon_lower_bound(10, 10, 5, confidence=1.0),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_randomised_response_stays_below_its_epsilon_and_comes_near():
    """Each coin is released rightly with probability e^ε / (1 + e^ε): the mechanism for which the bound is tight."""
    true, bounds = 1.5, []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        coins = generator.integers(0, 2, 2000)
        released = np.where(generator.random(2000) < 1 / (1 + math.exp(-true)), coins, 1 - coins)
        guesses = 2 * released - 1
        bounds.append(epsilon_lower_bound(2000, 2000, int((guesses == 2 * coins - 1).sum())))
    assert np.mean(np.array(bounds) > true) <= 0.1  # each holds at 95 %
    assert max(bounds) < true + 0.1
    assert min(bounds) > true - 0.35


def gaussian_epsilon(shift, delta):
    """ε of N(0, 1) against N(shift, 1) at δ: Balle, Wang 2018, theorem 8, by bisection."""
    low, high = 0.0, 50.0
    while high - low > 1e-9:
        center = (low + high) / 2
        spent = norm.cdf(shift / 2 - center / shift) - math.exp(center) * norm.cdf(-shift / 2 - center / shift)
        low, high = (center, high) if spent > delta else (low, center)
    return high


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_noisy_sums_stay_below_the_accountants_epsilon(shift, fraction):
    """Every canary moves one coordinate of a sum by `shift` standard deviations of its noise."""
    delta, m = 1e-5, 1000
    true = gaussian_epsilon(shift, delta)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        coins = generator.integers(0, 2, m)
        scores = shift * coins + generator.standard_normal(m)
        guesses = guess_coins(scores, int(fraction * m))
        correct = int(((guesses == 1) & (coins == 1)).sum() + ((guesses == -1) & (coins == 0)).sum())
        assert epsilon_lower_bound(m, int(fraction * m), correct, delta) <= true
