"""Noise in shares: how much there is, with and without those who drop out; clipping in integers; a lying server."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from fl_lightning.privacy.secure_aggregation.client import SecureClient
from fl_lightning.privacy.secure_aggregation.noise_shares import (
    MIN_SIGMA,
    TAIL,
    NoisePlan,
    clip_and_round,
    noise_share,
    plan_noise,
)
from fl_lightning.privacy.secure_aggregation.participant import Participant
from fl_lightning.privacy.secure_aggregation.randomness import seeded_random
from fl_lightning.privacy.secure_aggregation.session import aggregate_in_memory, simulated_members
from fl_lightning.privacy.secure_aggregation.terms import NoiseTerms, SecureAggregationError, Terms

NAMES = [f"hr/client_{i}" for i in range(4)]


def make_terms(invited=4, size=10, clip=1.0, multiplier=1.0, curious=1, **options):
    return Terms("run", "hr", 1, invited, size, max_weight=1, noise=NoiseTerms(clip, multiplier, curious), **options)


def aggregate(updates, terms, **options):
    inputs = {name: (update, 1) for name, update in updates.items()}
    return aggregate_in_memory(
        terms, simulated_members(list(updates), 7), inputs, lambda name: seeded_random(7, name), **options
    )


def share_of(name, terms):
    return noise_share(seeded_random(7, name)("noise"), plan_noise(terms), terms.size)


def clipped_mean(updates, clip, names):
    return np.mean([updates[n] * min(1, clip / np.linalg.norm(updates[n])) for n in names], axis=0)


def draw(size=50, scale=1.0, seed=0):
    generator = np.random.default_rng(seed)
    return {name: scale * generator.normal(size=size) * (i + 1) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(
    ("invited", "curious", "needed"), [(3, 0, 3), (3, 2, 3), (4, 1, 3), (16, 1, 11), (64, 5, 43), (5000, 1, 3334)]
)
def test_the_plan_has_enough_noise_and_room_by_exact_numbers(invited, curious, needed, multiplier):
    plan = plan_noise(make_terms(invited, multiplier=multiplier, curious=curious))
    wanted = (Fraction(multiplier) * plan.sensitivity) ** 2
    assert plan.honest == needed - curious
    assert plan.honest * plan.sigma**2 >= wanted > plan.honest * (plan.sigma - 1) ** 2
    room = 2**31 - 1 - invited * plan.sensitivity
    assert room >= 0
    assert invited * (TAIL * plan.sigma) ** 2 <= room**2
    # As fine as the ring allows: twice as fine, it would be too small.
    assert 2 * (invited * plan.sensitivity + TAIL * math.sqrt(invited) * plan.sigma) > 2**31
    assert plan.multiplier(plan.honest) >= multiplier


def test_the_plan_of_three_by_hand():
    """Δ (3 + 12 √3 z / √2) = 2³¹ - 2 - 12 √3, and σ = Δ / √2."""
    plan = plan_noise(make_terms(3))
    assert plan.sensitivity == pytest.approx((2**31 - 2 - 12 * 3**0.5) / (3 + 12 * 1.5**0.5), abs=1)
    assert plan.sigma == pytest.approx(plan.sensitivity / 2**0.5, abs=1)
    assert plan.unit == 1 / plan.sensitivity
    assert plan.multiplier(3) == pytest.approx(1.5**0.5)


def test_too_little_noise_for_too_many_clients_is_refused():
    assert plan_noise(make_terms(100_000)).sigma >= MIN_SIGMA
    with pytest.raises(
        ValueError, match="at least 64 units of the ring, got 42 with 0.5 and 100,000 clients; ask fewer"
    ):
        plan_noise(make_terms(100_000, multiplier=0.5))


@pytest.mark.parametrize("sensitivity", [1, 5, 13, 100, 2**29])
def test_no_clipped_update_is_longer_than_the_sensitivity(sensitivity):
    """By brute force: a grid, points of the sphere that are integers, and numbers whose squares overflow."""
    plan = NoisePlan(sensitivity, 0, 1, 1 / sensitivity)
    steps = np.linspace(-1.5, 1.5, 13)
    triples = [(3, 4, 0), (5, 12, 0), (8, 15, 0), (1, 2, 2), (2, 3, 6), (4, 4, 7), (0, 0, 1)]
    vectors = [np.array(point) for point in itertools.product(steps, repeat=3)]
    for triple in triples:
        exact = np.array(triple) / np.linalg.norm(triple)
        vectors += [exact, np.nextafter(exact, 2), np.nextafter(exact, 0), 1e300 * exact, 1e-310 * exact, 7 * exact]
    generator = np.random.default_rng(1)
    vectors += list(generator.normal(size=(300, 2000)))
    for vector in vectors:
        rounded = clip_and_round(vector, plan, clip=1.0)
        assert sum(int(q) ** 2 for q in rounded) <= sensitivity**2
        length = np.linalg.norm(vector) if np.abs(vector).max() < 1e200 else math.inf
        wanted = (
            vector if length <= 1 else vector / np.abs(vector).max() / np.linalg.norm(vector / np.abs(vector).max())
        )
        assert np.abs(rounded - wanted * sensitivity).max() < 1 + 2**-10


def test_without_noise_the_sum_is_that_of_clipped_updates():
    updates, terms = draw(), make_terms(size=50, clip=9.0, multiplier=0.0)
    lengths = [np.linalg.norm(update) for update in updates.values()]
    assert min(lengths) < 9.0 < max(lengths)
    result = aggregate(updates, terms)
    difference = np.abs(result.mean - clipped_mean(updates, 9.0, NAMES)).max()
    assert 0 < difference <= result.error < 1e-7
    assert (result.weight, result.clients) == (4, NAMES)


@pytest.mark.parametrize("dropped", [0, 1])
def test_the_noise_of_a_sum_has_the_moments_that_were_planned(dropped):
    terms = make_terms(size=40_000, clip=3.0, multiplier=2.0)
    plan, updates = plan_noise(terms), draw(40_000, 1e-3)
    left = NAMES[dropped:]
    result = aggregate(updates, terms, drops=dict.fromkeys(NAMES[:dropped], "input"))
    noise = (result.mean - clipped_mean(updates, 3.0, left)) * len(left) / 3.0  # of the sum, in clipping norms
    assert result.clients == left
    # 3 of 4 must stay and one may be curious, so two shares have z² = 4, three have 6 and four have 8.
    variance = len(left) * 2.0**2 / 2
    assert plan.multiplier(len(left)) ** 2 == pytest.approx(variance)
    assert abs(noise.mean()) < 4 * math.sqrt(variance / 40_000)
    low, high = chi2.ppf([1e-4, 1 - 1e-4], 40_000) / 40_000
    assert low * variance < noise.var() < high * variance
    assert abs(np.mean(noise**4) / (3 * variance**2) - 1) < 0.05


def test_a_curious_client_takes_its_own_share_off_and_the_accountants_noise_is_left():
    terms = make_terms(size=40_000, multiplier=2.0)
    zeros = {name: np.zeros(40_000) for name in NAMES}
    result = aggregate(zeros, terms, drops={NAMES[0]: "input"})
    total = np.rint(result.mean * 3 / plan_noise(terms).unit).astype(np.int64)
    left = total - share_of(NAMES[1], terms)
    assert np.array_equal(left, share_of(NAMES[2], terms) + share_of(NAMES[3], terms))
    low, _ = chi2.ppf([1e-4, 1 - 1e-4], 40_000) / 40_000
    assert (left * plan_noise(terms).unit).var() > low * 2.0**2


def test_the_largest_sum_with_much_noise_does_not_wrap_around():
    terms = make_terms(size=2000, multiplier=50.0)
    same = np.eye(1, 2000)[0]
    result = aggregate(dict.fromkeys(NAMES, same), terms)
    noise = sum(share_of(name, terms) for name in NAMES) * plan_noise(terms).unit / 4
    assert result.mean == pytest.approx(same + noise, abs=result.error)
    assert 17 < noise.std() < 18.5  # 50 √2 / 4


def test_noise_is_of_the_client_and_its_key_and_independent_of_others():
    terms = make_terms(size=20_000)
    shares = [share_of(name, terms) for name in NAMES]
    assert np.abs(np.corrcoef(shares)[np.triu_indices(4, 1)]).max() < 0.04
    assert np.array_equal(share_of(NAMES[0], terms), shares[0])


def test_an_update_that_is_not_finite_becomes_no_change():
    plan = plan_noise(make_terms())
    for value in (math.nan, math.inf, -math.inf):
        assert not clip_and_round(np.array([1.0, value]), plan, 1.0).any()
    assert not clip_and_round(np.zeros(2), plan, 1.0).any()


@pytest.mark.parametrize(
    "terms",
    [
        make_terms(multiplier=0.99),
        make_terms(multiplier=0.0),
        make_terms(curious=0),
        make_terms(clip=2.0),
        Terms("run", "hr", 1, 4, 10, max_weight=1),
    ],
    ids=["less noise", "none", "for fewer curious clients", "another norm", "no clipping"],
)
def test_a_client_takes_no_part_in_a_round_with_less_protection_than_its_own(terms):
    member = simulated_members(NAMES, 7)[NAMES[0]]
    member = Participant(member.client_id, member.identity, member.roster, noise=NoiseTerms(1.0, 1.0, 1))
    with pytest.raises(SecureAggregationError, match="hr/client_0 refuses: expected at least .*clip=1.0"):
        SecureClient(member, terms)
    assert SecureClient(member, make_terms(multiplier=1.5))


def test_a_server_cannot_tell_clients_different_noise():
    """What clients sign has the terms in it, so those with others are strangers to each other."""
    members, less = simulated_members(NAMES, 7), make_terms(multiplier=0.1)
    clients = {n: SecureClient(m, less if n == NAMES[3] else make_terms()) for n, m in members.items()}
    advertised = {name: client.advertise() for name, client in clients.items()}
    with pytest.raises(SecureAggregationError, match="the keys of hr/client_3 are not signed by hr/client_3 for this"):
        clients[NAMES[0]].share_keys(advertised)
    assert len({make_terms(multiplier=z, curious=c).digest for z in (1.0, 2.0) for c in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip: expected a positive finite number, got 0"),
        ({"clip": math.inf}, "clip: expected a positive finite number, got inf"),
        ({"multiplier": -1.0}, "noise_multiplier: expected a finite number of at least 0, got -1"),
        ({"curious": -1}, "curious_clients: expected at least 0, got -1"),
        ({"curious": 3}, "curious_clients: expected fewer than the 3 of a sum, got 3"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_terms(**change)
    with pytest.raises(ValueError, match="max_weight: expected 1 with noise, got 2"):
        dataclasses.replace(make_terms(), max_weight=2)
    with pytest.raises(ValueError, match="terms: expected noise, got none"):
        plan_noise(Terms("run", "hr", 1, 4, 10))
