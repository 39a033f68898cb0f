"""The sampler against exact probabilities, and its decisions in fp64 against exact ones."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from fl_lightning.privacy.secure_aggregation import discrete_gaussian as module
from fl_lightning.privacy.secure_aggregation.discrete_gaussian import MAX_SIGMA, discrete_gaussian


def exact_mass(sigma, values):
    whole = sum(math.exp(-(x**2) / (2 * sigma**2)) for x in range(-40 * sigma, 40 * sigma + 1))
    return np.array([math.exp(-(x**2) / (2 * sigma**2)) / whole for x in values])


@pytest.mark.parametrize("sigma", [1, 2, 3, 7, 20])
def test_frequencies_are_those_of_the_exact_mass(sigma):
    count = 400_000
    drawn = discrete_gaussian(bytes([sigma]) * 32, sigma, count)
    inner = np.arange(-4 * sigma, 4 * sigma + 1)
    expected = exact_mass(sigma, inner)
    frequencies = np.array([np.count_nonzero(drawn == x) for x in inner])
    rest = count - frequencies.sum(), count * (1 - expected.sum())
    assert chisquare([*frequencies, rest[0]], [*(count * expected), rest[1]]).pvalue > 1e-3


def test_far_values_are_as_frequent_as_they_should_be():
    """k has its own probabilities from 0 to 1, and those of a tail from 2 on."""
    sigma, count = 1000, 2_000_000
    size = np.abs(discrete_gaussian(b"far" + bytes(29), sigma, count)) // sigma
    mass = exact_mass(sigma, range(7 * sigma))
    for k in range(6):
        share = mass[k * sigma : (k + 1) * sigma].sum() * 2 - (mass[0] if k == 0 else 0)
        assert abs(np.count_nonzero(size == k) - count * share) < 4.5 * math.sqrt(count * share) + 1


@pytest.mark.parametrize("sigma", [12_345_678, MAX_SIGMA])
def test_a_large_sigma_gives_the_normal_distribution_and_even_last_digits(sigma):
    drawn = discrete_gaussian(b"large" + bytes(27), sigma, 200_000)
    assert kstest(drawn / sigma, "norm").pvalue > 1e-3
    assert chisquare(np.bincount(drawn % 16, minlength=16)).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


def test_probabilities_of_the_proposals_sum_to_one_and_cover_the_target():
    chances = [Fraction(18, 32) / module._factor(k) for k in range(40)]
    assert sum(chances) == 1 - Fraction(3, 32) * Fraction(1, 8**38)
    assert chances[:3] == [Fraction(18, 32), Fraction(11, 32), Fraction(3, 32) * Fraction(7, 8)]
    with localcontext() as context:
        context.prec = 40
        for k in range(40):
            assert Fraction((Decimal(-k * k) / 2).exp()) * module._factor(k) <= 1


def test_fp64_decides_as_exact_arithmetic_does(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 512)
    fast = discrete_gaussian(bytes(32), 100_003, 1500)
    asked = []
    real = module._is_below
    monkeypatch.setattr(module, "_is_below", lambda *values: asked.append(values) or real(*values))
    monkeypatch.setattr(module, "_MARGIN", 2.0)  # nothing is certain in fp64 any more
    assert discrete_gaussian(bytes(32), 100_003, 1500).tolist() == fast.tolist()
    assert len(asked) > 2000


class Digits:
    """Bits that are given."""

    def __init__(self, words):
        self.words = iter(words)

    def more(self):
        return next(self.words)


@pytest.mark.parametrize(("k", "size", "sigma"), [(0, 700, 1000), (1, 1500, 1000), (3, 3 * 12_345_678 + 9, 12_345_678)])
def test_a_uniform_number_that_agrees_in_many_bits_is_compared_on(k, size, sigma):
    with localcontext() as context:
        context.prec = 120
        power = (Decimal(-(size**2)) / Decimal(2 * sigma**2)).exp()
    words, rest = [], Fraction(power) * module._factor(k)
    for _ in range(6):  # 192 bits of the probability itself
        rest *= 2**32
        words.append(rest.numerator // rest.denominator)
        rest -= words[-1]
    below, above = [*words[1:-1], words[-1] - 1], [*words[1:-1], words[-1] + 1]
    assert module._is_below(words[0], k, size, sigma, Digits([*below, 0])) is True
    assert module._is_below(words[0], k, size, sigma, Digits([*above, 0])) is False


def test_zero_octal_digits_are_counted_beyond_a_word():
    digits = np.array([0b001, 0b001_000, 0o10_000_000, 0], dtype=np.uint32)
    assert module._zero_digits(digits, Digits([8, 16, 3])).tolist() == [0, 1, 7, 10]


def test_the_key_alone_determines_the_noise():
    first = discrete_gaussian(b"k" * 32, 1000, 50_000)
    assert np.array_equal(discrete_gaussian(b"k" * 32, 1000, 70_000)[:50_000], first)
    assert not np.array_equal(discrete_gaussian(b"l" * 32, 1000, 50_000), first)
    assert first[:6].tolist() == [95, -1119, -1036, -349, -458, 127]  # as runs of earlier versions that are resumed


@pytest.mark.parametrize("sigma", [0, -1, MAX_SIGMA + 1])
def test_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma: expected an integer from 1 to"):
        discrete_gaussian(bytes(32), sigma, 1)
