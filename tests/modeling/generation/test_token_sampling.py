import math
from collections import Counter

import pytest
import torch

from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling, sample_tokens

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draws(count=4000, **how):
    sampler = Sampler(Sampling(**how))
    return [sampler.sample(LOGITS) for _ in range(count)]


def test_temperature_0_takes_the_most_likely():
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
    assert [sampler.sample(LOGITS) for _ in range(4)] == [0, 1, 0, 2]
    once = Sampler(Sampling(temperature=0, presence_penalty=0.6))
    assert [once.sample(LOGITS) for _ in range(4)] == [0, 1, 0, 0]


def test_penalties_leave_the_logits_alone():
    before = LOGITS.clone()
    sampler = Sampler(Sampling(temperature=0, presence_penalty=2.0))
    for _ in range(3):
        sampler.sample(LOGITS)
    assert torch.equal(before, LOGITS)


def test_penalties_equal_a_loop_over_the_tokens():
    how = {"temperature": 0, "presence_penalty": 0.37, "frequency_penalty": 0.11}
    sampler, counts = Sampler(Sampling(**how)), Counter()
    for step in range(200):
        logits = torch.randn(16, generator=torch.Generator().manual_seed(step))
        expected = logits.clone()
        for token, times in counts.items():
            expected[token] -= 0.37 + times * 0.11
        token = sampler.sample(logits)
        assert token == int(expected.argmax())
        counts[token] += 1


def test_a_bias_is_added_to_the_logit_of_its_token():
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert Sampler(Sampling(temperature=0, logit_bias=((1, -100.0),))).sample(logits) == 2
    assert Sampler(Sampling(temperature=0, logit_bias=((0, 2.5), (2, 2.25)))).sample(logits) == 2
    assert Sampler(Sampling(temperature=1, logit_bias=((0, 100.0),))).sample(logits) == 0
    assert logits.tolist() == [0.0, 3.0, 1.0]
    assert sample_tokens(logits[None], [Sampler(Sampling(temperature=0, logit_bias=((1, -100.0),)))]) == [2]


def test_a_temperature_near_0_is_finite():
    assert set(draws(100, temperature=1e-6)) == {0}


def test_each_row_has_its_sampler():
    rows = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    greedy, drawn = Sampler(Sampling(temperature=0)), Sampling(seed=3)
    again = Sampler(drawn)
    for _ in range(20):
        first, second, third = sample_tokens(rows, [greedy, greedy, again])
        assert (first, second) == (0, 3)
    other = Sampler(drawn)
    assert [sample_tokens(rows[:1], [other])[0] for _ in range(20)][-1] == third


def test_all_rows_that_are_drawn_leave_the_device_in_one_transfer(monkeypatch):
    rows, transfers, to = LOGITS.repeat(8, 1), [], torch.Tensor.to

    def count(tensor, *args, **options):
        if tensor.numel() > LOGITS.numel():
            transfers.append(tuple(tensor.shape))
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", count)
    greedy = Sampler(Sampling(temperature=0))
    sample_tokens(rows, [greedy, *(Sampler(Sampling(seed=seed)) for seed in range(7))])
    assert transfers == [(7, 4)]
