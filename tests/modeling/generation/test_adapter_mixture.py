"""Mixtures of adapters beside single ones in a batch, against PEFT's own adapters, one at a time, mixed by hand."""

from __future__ import annotations

import pytest
import torch

from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.generation.adapter_mixture import AdapterMixture
from fl_lightning.modeling.generation.decoding import Answer, Decoder
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling
from fl_lightning.modeling.lora import create_lora_model, load_lora_state

GREEDY = Sampling(temperature=0)
WEIGHTS = (0.5, 0.3, 0.2)
PROMPTS = ([5, 6, 7, 8, 9], [11], list(range(20, 31)))


class RecordingSampler(Sampler):
    """Keeps the logits that it chooses from."""

    greedy = False  # or it would see none

    def __init__(self, sampling):
        super().__init__(sampling)
        self.logits = []

    def sample(self, logits):
        self.logits.append(logits.clone())
        return super().sample(logits)


@pytest.fixture
def served(micro_model, random_state):
    """(model, bank, states of three adapters)."""
    model = create_lora_model(micro_model("qwen"), r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]).eval()
    return model, AdapterBank(model), [random_state(model, seed) for seed in range(3)]


@torch.no_grad()
def mixed_log_probs(model, states, weights, ids):
    """log Σ w softmax(logits) after ids, of a PEFT model that holds one adapter at a time, in fp64; shape (V,)."""
    probs = 0
    for state, weight in zip(states, weights, strict=True):
        load_lora_state(model, state)
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        probs = probs + weight * torch.softmax(logits.double(), dim=-1)
    return probs.log()


def greedy_by_hand(model, states, weights, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(mixed_log_probs(model, states, weights, ids).argmax()))
    return ids[len(prompt) :]


def decode(decoder, bank, *batches):
    """The batches join one after another, a step apart."""
    with bank.attached():
        for batch in batches:
            decoder.add(batch)
            decoder.step()
        while decoder.answers:
            decoder.step()


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def test_greedy_answers_are_those_of_the_probabilities_mixed_by_hand(served):
    model, bank, states = served
    mixture = AdapterMixture(tuple(map(bank.prepare, states)), WEIGHTS)
    answers = [Answer(prompt, mixture, 6, Sampler(GREEDY)) for prompt in PROMPTS]
    decode(Decoder(model, bank, []), bank, answers)
    by_hand = [greedy_by_hand(model, states, WEIGHTS, prompt, 6) for prompt in PROMPTS]
    assert [answer.tokens for answer in answers] == by_hand
    single = [greedy_by_hand(model, [state], [1.0], prompt, 6) for state in states for prompt in PROMPTS]
    assert not any(tokens in single for tokens in by_hand)  # a mixture is none of its adapters


def test_log_probabilities_of_every_token_are_those_mixed_by_hand(served):
    model, bank, states = served
    sampler = RecordingSampler(Sampling(temperature=0.8, top_p=0.9, seed=3))
    mixture = AdapterMixture((*map(bank.prepare, states[:2]), BankedAdapter({})), WEIGHTS)
    answer = Answer(PROMPTS[0], mixture, 6, sampler)
    other = Answer(PROMPTS[2], bank.prepare(states[2]), 4, Sampler(Sampling(seed=1)))
    decode(Decoder(model, bank, []), bank, [other], [answer])
    levels = [*states[:2], zeros(states[0])]
    for step, logits in enumerate(sampler.logits):
        expected = mixed_log_probs(model, levels, WEIGHTS, [*PROMPTS[0], *answer.tokens[:step]])
        torch.testing.assert_close(logits.double(), expected, rtol=0, atol=2e-5)
    assert len(sampler.logits) == 6


def test_single_adapters_beside_a_mixture_keep_every_bit(served):
    """The same rows without the mixture are those of its adapters, each answering alone."""
    model, bank, states = served
    adapters = tuple(map(bank.prepare, states))

    def logits_beside(others):
        samplers = [RecordingSampler(Sampling(seed=seed)) for seed in range(3)]
        singles = [Answer(PROMPTS[i], adapters[i], 6, samplers[i]) for i in range(3)]
        decoder = Decoder(model, bank, [])
        decode(decoder, bank, [singles[0], *others, singles[1]], [singles[2]])
        return [torch.stack(sampler.logits) for sampler in samplers], [answer.tokens for answer in singles]

    beside_mixture, tokens = logits_beside([Answer(PROMPTS[0], AdapterMixture(adapters, WEIGHTS), 8, Sampler(GREEDY))])
    beside_singles, same = logits_beside([Answer(PROMPTS[0], adapter, 8, Sampler(GREEDY)) for adapter in adapters])
    assert all(torch.equal(*pair) for pair in zip(beside_mixture, beside_singles, strict=True))
    assert tokens == same


def test_a_mixture_that_ends_or_is_dropped_takes_all_its_rows_along(served):
    model, bank, states = served
    adapters = tuple(map(bank.prepare, states))
    single, short, dropped = (
        Answer(prompt, adapter, length, Sampler(GREEDY))
        for prompt, adapter, length in (
            (PROMPTS[0], adapters[0], 8),
            (PROMPTS[1], AdapterMixture(adapters, WEIGHTS), 3),
            (PROMPTS[2], AdapterMixture(adapters[1:], (0.5, 0.5)), 8),
        )
    )
    decoder = Decoder(model, bank, [])
    with bank.attached():
        decoder.add([dropped, short, single])
        assert decoder._mask.shape[0] == 6
        decoder.step()
        decoder.drop([dropped])
        assert decoder._mask.shape[0] == 4
        decoder.step()
        assert (short.finish, decoder._mask.shape[0]) == ("length", 1)
        while decoder.answers:
            decoder.step()
    assert single.tokens == greedy_by_hand(model, states[:1], [1.0], PROMPTS[0], 8)
    assert short.tokens == greedy_by_hand(model, states, WEIGHTS, PROMPTS[1], 3)
    assert len(dropped.tokens) == 2


def test_draws_follow_the_mixed_probabilities_and_their_seed(served):
    model, bank, states = served
    mixture = AdapterMixture(tuple(map(bank.prepare, states)), WEIGHTS)
    answers = [Answer([5, 6], mixture, 1, Sampler(Sampling(temperature=0.5, seed=seed))) for seed in range(1000)]
    again = Answer([5, 6], mixture, 1, Sampler(Sampling(temperature=0.5, seed=7)))
    decoder = Decoder(model, bank, [])
    with bank.attached():
        for start in range(0, 1000, 250):
            decoder.add(answers[start : start + 250])
        decoder.add([again])
    assert again.tokens == answers[7].tokens
    probs = torch.softmax(mixed_log_probs(model, states, WEIGHTS, [5, 6]) / 0.5, dim=-1)
    bins = (probs.cumsum(0) * 10).long().clamp(max=9)  # of tokens, of about equal probability
    expected = 1000 * torch.zeros(10, dtype=torch.float64).index_add(0, bins, probs)
    observed = torch.bincount(bins[[answer.tokens[0] for answer in answers]], minlength=10)
    assert (expected > 20).all()
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # p = 0.001 with 9 degrees of freedom


def test_penalties_and_biases_come_after_the_mixing(served):
    model, bank, states = served
    mixture = AdapterMixture(tuple(map(bank.prepare, states)), WEIGHTS)
    first = greedy_by_hand(model, states, WEIGHTS, PROMPTS[0], 1)[0]
    biased = Answer(PROMPTS[0], mixture, 1, Sampler(Sampling(temperature=0, logit_bias=((first, -100.0),))))
    decode(Decoder(model, bank, []), bank, [biased])
    assert biased.tokens == [int(mixed_log_probs(model, states, WEIGHTS, PROMPTS[0]).topk(2).indices[1])]
