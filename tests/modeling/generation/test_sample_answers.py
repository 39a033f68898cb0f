"""Random answers: reproducible, of one length, and at a temperature near 0 the greedy ones."""

import pytest
import torch

from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.generation.sample_answers import sample_answers


@pytest.fixture
def prompts():
    return [torch.arange(5, 5 + length) for length in (3, 9, 4)]


def test_at_a_low_temperature_they_are_the_greedy_ones(micro_model, prompts):
    model = micro_model("qwen")
    greedy = generate(model, prompts, max_new_tokens=6, ends=[])
    sampled = sample_answers(model, prompts, num_tokens=6, temperature=1e-4, seed=0)
    assert [answer.tolist() for answer in sampled] == [answer.tolist() for answer in greedy]


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "qwen"])
def test_seed_decides_and_forbidden_tokens_never_come(micro_model, prompts, kind):
    model, forbidden = micro_model(kind), set(range(0, 4096, 2))
    before = torch.random.get_rng_state()

    def sample(seed):
        answers = sample_answers(model, prompts, num_tokens=5, temperature=1.0, seed=seed, forbidden=forbidden)
        return [answer.tolist() for answer in answers]

    first = sample(1)
    assert first == sample(1)
    assert first != sample(2)
    assert all(len(answer) == 5 and not forbidden & set(answer) for answer in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_draws_follow_the_models_distribution(micro_model):
    model = micro_model("qwen")
    prompt = torch.tensor([7, 8, 9])
    with torch.no_grad():
        probabilities = torch.softmax(model(prompt[None]).logits[0, -1].double() / 0.8, -1)
    top = int(probabilities.argmax())
    draws = sample_answers(model, [prompt] * 400, num_tokens=1, temperature=0.8, seed=3, batch_size=400)
    share = sum(int(draw) == top for draw in draws) / 400
    expected = float(probabilities[top])
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 400) ** 0.5)
