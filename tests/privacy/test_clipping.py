import math

import pytest

from fl_lightning.privacy import default_count_noise, mean_noise_multiplier, next_clip
from fl_lightning.privacy.noise import gaussian

KEY = "5e" * 32


def after(clip, below, present, asked, **options):
    return next_clip(clip, below, present=present, asked=asked, seed=KEY, **{"count_noise": 0.0, **options})


@pytest.mark.parametrize(
    ("below", "present", "asked", "share"),
    [(4, 4, 4, 1.0), (0, 4, 4, 0.0), (2, 4, 4, 0.5), (3, 4, 8, 0.625), (0, 0, 8, 0.5)],  # (3 - 2) / 8 + 1/2
)
def test_the_clip_moves_by_how_far_the_share_is_from_the_quantile(below, present, asked, share):
    assert after(2.0, below, present, asked) == pytest.approx(2.0 * math.exp(-0.2 * (share - 0.5)), rel=1e-12)
    wanted = 2.0 * math.exp(-0.3 * (share - 0.9))
    assert after(2.0, below, present, asked, quantile=0.9, rate=0.3) == pytest.approx(wanted, rel=1e-12)


def test_one_client_moves_the_count_by_a_half():
    # log C / -rate is the share; with 10 asked a client that comes moves it by 1/20, either way
    base = math.log(after(1.0, 3, 6, 10))
    assert math.log(after(1.0, 4, 7, 10)) - base == pytest.approx(-0.2 / 20)
    assert math.log(after(1.0, 3, 7, 10)) - base == pytest.approx(0.2 / 20)


def test_the_noise_on_the_count_is_a_twentieth_of_those_asked():
    assert default_count_noise(40) == 2.0
    noise = 2.0 * gaussian(KEY, "count", 1).item()
    wanted = math.exp(-0.2 * ((30 - 20 + noise) / 40 + 0.5 - 0.5))
    assert next_clip(1.0, 30, present=40, asked=40, seed=KEY) == pytest.approx(wanted, rel=1e-12)
    assert after(1.0, 30, 40, 40, count_noise=2.0) == pytest.approx(wanted, rel=1e-12)


def test_another_round_has_other_noise():
    first = next_clip(1.0, 30, present=40, asked=40, seed=KEY)
    assert next_clip(1.0, 30, present=40, asked=40, seed="5f" * 32) != first


def test_the_clip_comes_to_the_median_of_norms():
    norms = [1.0 + i for i in range(101)]  # median 51
    clip = 0.1
    for number in range(300):
        below = sum(n <= clip for n in norms)
        clip = next_clip(clip, below, present=101, asked=101, seed=f"{number:064x}")
    assert clip == pytest.approx(51, rel=0.15)


def test_the_noise_is_split_as_worked_by_hand():
    assert mean_noise_multiplier(1.2, 1.0) == pytest.approx(1.5)  # (1 / 1.44 - 1 / 4)^(-1/2)
    assert mean_noise_multiplier(0.6, 0.5) == pytest.approx(0.75)  # (1 / 0.36 - 1)^(-1/2) = (0.64 / 0.36)^(-1/2)
    assert mean_noise_multiplier(0.0, 1.0) == 0.0


@pytest.mark.parametrize("z", [0.1, 0.5, 1.0, 4.9])
@pytest.mark.parametrize("sigma", [2.5, 10.0, 1000.0])
def test_mean_and_count_together_cost_what_z_does(z, sigma):
    left = mean_noise_multiplier(z, sigma)
    assert left > z
    assert (left**-2 + (2 * sigma) ** -2) ** -0.5 == pytest.approx(z, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 0.1, 0.0, math.nan, math.inf])
def test_a_count_with_too_little_noise_is_refused(sigma):
    with pytest.raises(ValueError, match=f"count_noise: expected .* above 0.5 with noise multiplier 1.0, got {sigma}"):
        mean_noise_multiplier(1.0, sigma)


@pytest.mark.parametrize("z", [-1.0, math.inf, math.nan])
def test_a_noise_multiplier_out_of_range_is_refused(z):
    with pytest.raises(ValueError, match=f"noise_multiplier: expected .*, got {z}"):
        mean_noise_multiplier(z, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "clip: expected .*, got 0.0"),
        ({"below": 5}, "below, present, asked: expected each at most the next, got 5, 4, 8"),
        ({"below": -1}, "below, present, asked: expected .*, got -1"),
        ({"present": 9}, "below, present, asked: expected .*, got 2, 9, 8"),
        ({"below": 0, "present": 0, "asked": 0}, "below, present, asked: expected .*, got 0, 0, 0"),
        ({"quantile": 1.5}, r"quantile: expected a number in \[0, 1\], got 1.5"),
        ({"rate": -0.1}, "rate: expected .*, got -0.1"),
        ({"count_noise": -1.0}, "count_noise: expected .*, got -1.0"),
        ({"seed": "abc"}, "seed: expected .*, got 3 characters"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        next_clip(**{"clip": 1.0, "below": 2, "present": 4, "asked": 8, "seed": KEY, **options})
