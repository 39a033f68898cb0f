import math
from collections import Counter

import pytest
import torch

from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling, choose_all

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draws(count=4000, **how):
    sampler = Sampler(Sampling(**how))
    return [sampler.choose(LOGITS) for _ in range(count)]


def test_temperature_0_takes_the_likeliest():
    assert draws(5, temperature=0) == [0] * 5


def test_draws_follow_the_probabilities():
    counts = Counter(draws())
    for token, chance in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert counts[token] / 4000 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 4000))


def test_a_temperature_of_one_half_squares_the_odds():
    counts = Counter(draws(temperature=0.5))
    assert counts[0] / counts[1] == pytest.approx((0.5 / 0.3) ** 2, rel=0.2)


@pytest.mark.parametrize(
    ("top_p", "left"), [(0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_that_make_up_the_share(top_p, left):
    assert set(draws(top_p=top_p)) == left


def test_a_seed_gives_the_same_draws_and_another_one_others():
    assert draws(50, seed=1) == draws(50, seed=1)
    assert draws(50, seed=1) != draws(50, seed=2)


def test_penalties_count_what_was_produced():
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=1.0))
    # 0.5 and 0.3 are ln(5/3) = 0.51 apart: after one 0 the other is likelier, and so on down
    assert [sampler.choose(LOGITS) for _ in range(4)] == [0, 1, 0, 2]
    once = Sampler(Sampling(temperature=0, presence_penalty=0.6))
    assert [once.choose(LOGITS) for _ in range(4)] == [0, 1, 0, 0]


def test_penalties_leave_the_logits_alone():
    before = LOGITS.clone()
    sampler = Sampler(Sampling(temperature=0, presence_penalty=2.0))
    for _ in range(3):
        sampler.choose(LOGITS)
    assert torch.equal(before, LOGITS)


def test_a_temperature_near_0_is_finite():
    assert set(draws(100, temperature=1e-6)) == {0}


def test_rows_are_chosen_each_in_its_own_way():
    rows = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    greedy, drawn = Sampler(Sampling(temperature=0)), Sampling(seed=3)
    again = Sampler(drawn)
    for _ in range(20):
        first, second, third = choose_all(rows, [greedy, greedy, again])
        assert (first, second) == (0, 3)
    other = Sampler(drawn)
    assert [choose_all(rows[:1], [other])[0] for _ in range(20)][-1] == third
