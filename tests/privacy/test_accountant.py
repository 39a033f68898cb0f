import itertools
import math
import sys
from statistics import NormalDist

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fl_lightning.errors import InputError
from fl_lightning.privacy import epsilon, epsilon_of_shares, noise_multiplier_for

try:
    import dp_accounting
except ImportError:
    dp_accounting = None

needs_library = pytest.mark.skipif(dp_accounting is None, reason="dp-accounting is not installed (privacy extra)")


def everybody(z, rounds, delta=1e-5):
    return epsilon(z, rounds, delta, clients=8, asked=8)


def sampled(z, rounds, asked, delta=1e-5):
    return epsilon(z, rounds, delta, clients=1000, asked=asked)


def delta_of_a_gaussian(sigma, eps):
    """Balle and Wang 2018, theorem 8: Φ(1 / 2σ − εσ) − e^ε Φ(−1 / 2σ − εσ); erfc keeps the tails."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)


def epsilon_of_a_gaussian(sigma, delta):
    low, high = 0.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of_a_gaussian(sigma, middle) > delta else (low, middle)
    return high


@needs_library
@pytest.mark.parametrize("z", [0.5, 1.0, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 10, 100])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_rounds_are_one_gaussian_of_the_closed_form(z, rounds, delta):
    wanted = epsilon_of_a_gaussian(z / math.sqrt(rounds), delta)
    assert everybody(z, rounds, delta) == pytest.approx(wanted, rel=1e-3 if wanted < 1 else 1e-9)


@needs_library
@pytest.mark.parametrize(("z", "rounds"), [(2.0, 10), (4.0, 1), (4.0, 100)])
def test_privacy_loss_distributions_say_the_same(z, rounds):
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    wanted = accountant.compose(dp_accounting.GaussianDpEvent(z), rounds).get_epsilon(1e-5)
    assert everybody(z, rounds) == pytest.approx(wanted, rel=1e-6)


@needs_library
def test_one_round_worked_by_tables():
    # σ = 1, ε = 1: Φ(-0.5) - e Φ(-1.5) = 0.3085375 - 2.7182818 · 0.0668072
    assert epsilon(1.0, 1, 0.3085375 - 2.7182818 * 0.0668072, clients=1, asked=1) == pytest.approx(1.0, abs=1e-5)
    assert NormalDist().cdf(-1.5) == pytest.approx(0.0668072, abs=1e-7)


@needs_library
def test_more_noise_costs_less_and_more_rounds_cost_more():
    for cost in (everybody, lambda z, rounds: sampled(z, rounds, 50)):
        by_noise = [cost(z, 10) for z in (0.3, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)]
        assert by_noise == sorted(by_noise, reverse=True)
        assert len(set(by_noise)) == len(by_noise)
        by_rounds = [cost(2.0, rounds) for rounds in (0, 1, 2, 5, 10, 100, 1000)]
        assert by_rounds == sorted(by_rounds)
        assert by_rounds[0] == 0.0
    assert everybody(2.0, 10, 1e-3) < everybody(2.0, 10, 1e-5)


@needs_library
def test_no_noise_costs_everything_and_endless_noise_nothing():
    assert everybody(0.0, 1) == sampled(0.0, 1, 10) == math.inf
    assert everybody(1e9, 1) == sampled(1e9, 1, 10) == 0.0
    assert math.isfinite(everybody(1e-3, 1000))
    assert sampled(1e-3, 1000, 10) == everybody(1e-3, 1000)


@needs_library
@pytest.mark.parametrize("z", [0.5, 1.0, 4.0, 20.0])
def test_fewer_clients_never_cost_more(z):
    costs = [sampled(z, 10, asked) for asked in (10, 50, 100, 200, 500, 900, 1000)]
    assert costs == sorted(costs)
    assert costs[-1] == everybody(z, 10)
    assert costs[-2] == costs[-1]  # where nearly all are asked the draw hides nothing


@needs_library
@pytest.mark.parametrize(("z", "rounds", "asked"), [(1.0, 10, 50), (2.0, 100, 50), (4.0, 10, 100), (10.0, 100, 20)])
def test_a_draw_hides_no_more_than_can_be_proved_that_it_does_not(z, rounds, asked):
    # Reached: all others send -C. The client in question sends +C, or -C as they do; when it is drawn, which is with
    # probability q, the sum is another by 2 C. These two are the pair of Poisson sampling with noise multiplier z / 2.
    pair = dp_accounting.PoissonSampledDpEvent(asked / 1000, dp_accounting.GaussianDpEvent(z / 2))
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    least = accountant.compose(pair, rounds).get_epsilon(1e-5)
    assert least < sampled(z, rounds, asked) < everybody(z, rounds)


@needs_library
def test_the_orders_are_as_good_as_all_of_the_library():
    for z, rounds, asked in ((1.0, 10, 50), (4.0, 100, 50), (4.0, 100, 10)):
        event = dp_accounting.SampledWithoutReplacementDpEvent(1000, asked, dp_accounting.GaussianDpEvent(z / 2))
        accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
        wanted = accountant.compose(event, rounds).get_epsilon(1e-5)
        assert sampled(z, rounds, asked) == pytest.approx(wanted, rel=0.01)


@needs_library
@pytest.mark.parametrize("asked", [8, 1])
@pytest.mark.parametrize("wanted", [0.5, 3.0, 20.0])
def test_the_noise_that_is_found_costs_no_more_and_hardly_less(wanted, asked):
    z = noise_multiplier_for(wanted, 10, 1e-5, clients=8, asked=asked)
    assert epsilon(z, 10, 1e-5, clients=8, asked=asked) <= wanted
    assert epsilon(z * (1 - 2e-4), 10, 1e-5, clients=8, asked=asked) > wanted


@needs_library
def test_the_noise_for_a_cost_worked_by_hand():
    # ten rounds of 4 are one of 4 / √10, the cost of which is known from the closed form
    wanted = epsilon_of_a_gaussian(4 / math.sqrt(10), 1e-5)
    assert noise_multiplier_for(wanted, 10, 1e-5, clients=8, asked=8) == pytest.approx(4.0, rel=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier: expected .*, got -1.0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier: expected .*, got inf"),
        ({"rounds": -1}, "rounds: expected at least 0, got -1"),
        ({"delta": 0.0}, r"delta: expected a number in \(0, 1\), got 0.0"),
        ({"delta": 1.0}, "delta: expected .*, got 1.0"),
        ({"asked": 9}, "asked: expected 1 to 8, the number of clients, got 9"),
        ({"asked": 0}, "asked: expected 1 to 8, the number of clients, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        epsilon(**{"noise_multiplier": 1.0, "rounds": 1, "delta": 1e-5, "clients": 8, "asked": 8, **arguments})


@pytest.mark.parametrize(
    ("wanted", "rounds", "message"), [(0.0, 1, "epsilon: expected .*, got 0.0"), (1.0, 0, "rounds: expected .*, got 0")]
)
def test_costs_out_of_range_are_refused(wanted, rounds, message):
    with pytest.raises(ValueError, match=message):
        noise_multiplier_for(wanted, rounds, 1e-5, clients=8, asked=8)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"pip install 'fl_lightning\[privacy\]'"):
        everybody(1.0, 1)


@needs_library
def test_epsilon_of_shares_is_the_best_conversion_of_its_concentrated_cost():
    """Canonne et al. 2020, proposition 12, minimized apart."""
    for z, rounds, delta in itertools.product((0.3, 1.0, 5.0), (1, 10, 200), (1e-5, 1e-9)):
        rho = rounds / (2 * z**2)

        def cost(order, rho=rho, delta=delta):
            return rho * order + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

        best = minimize_scalar(cost, bounds=(1.0001, 2000), method="bounded", options={"xatol": 1e-9}).fun
        assert epsilon_of_shares(z, rounds, delta) == pytest.approx(best, rel=1e-3)
        assert epsilon_of_shares(z, rounds, delta) >= best


@needs_library
def test_epsilon_of_shares_is_a_little_more_than_that_of_a_server():
    for z, rounds in itertools.product((0.5, 1.0, 4.0), (1, 10, 100)):
        central = epsilon(z, rounds, 1e-5, clients=1, asked=1)
        assert central < epsilon_of_shares(z, rounds, 1e-5) < 1.1 * central
        assert epsilon_of_shares(z, rounds + 1, 1e-5) > epsilon_of_shares(z, rounds, 1e-5)


@needs_library
@pytest.mark.parametrize(("shares", "sigma", "sensitivity"), [(2, 64, 90), (3, 64, 30), (10, 64, 400)])
def test_the_sum_of_shares_is_no_less_private_than_that(shares, sigma, sensitivity):
    """δ of a sum of discrete Gaussians against the shifted one, from their exact probabilities."""
    values = np.arange(-13 * sigma, 13 * sigma + 1)
    mass = np.exp(-(values**2) / (2 * sigma**2))
    mass /= mass.sum()
    total = mass
    for _ in range(shares - 1):
        total = np.convolve(total, mass)
    padded = np.concatenate([np.zeros(sensitivity), total]), np.concatenate([total, np.zeros(sensitivity)])
    z = shares**0.5 * sigma / sensitivity
    for delta in (1e-3, 1e-5):
        bound = epsilon_of_shares(z, 1, delta)
        for p, q in (padded, padded[::-1]):
            assert np.maximum(p - math.exp(bound) * q, 0).sum() <= delta


@needs_library
def test_epsilon_of_shares_at_the_ends():
    assert epsilon_of_shares(1.0, 0, 1e-5) == 0
    assert epsilon_of_shares(0.0, 1, 1e-5) == math.inf
    assert epsilon_of_shares(1e-6, 1, 1e-5) == pytest.approx(5e11, rel=1e-4)
    for arguments in ((-1.0, 1, 1e-5), (math.nan, 1, 1e-5), (1.0, -1, 1e-5), (1.0, 1, 0.0)):
        with pytest.raises(ValueError, match="expected"):
            epsilon_of_shares(*arguments)
