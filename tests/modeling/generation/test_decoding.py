from __future__ import annotations

import random

import pytest
import torch

from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.generation.decoding import Answer, Decoder
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling
from fl_lightning.modeling.lora import create_lora_model, load_lora_state

TARGETS = {
    "qwen": ["q_proj", "v_proj"],
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "stablelm": ["q_proj", "v_proj"],
    "bloom": ["query_key_value"],
}
GREEDY = Sampling(temperature=0)


@pytest.fixture
def served(micro_model, random_state):
    """Factory of (model, bank, states of three adapters)."""

    def make(kind="qwen"):
        model = create_lora_model(micro_model(kind), r=4, lora_alpha=8, target_modules=TARGETS[kind]).eval()
        return model, AdapterBank(model), [random_state(model, seed) for seed in range(3)]

    return make


def prompts(count, longest=12, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(3, 4000) for _ in range(draw.randrange(1, longest))] for _ in range(count)]


@torch.no_grad()
def alone(model, state, prompt, steps, end=None):
    """One token after another by PEFT's own adapter, without cache, padding or batch."""
    load_lora_state(model, state)
    ids = torch.tensor([prompt])
    for _ in range(steps):
        token = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        if token == end:
            break
        ids = torch.cat([ids, token[None, None]], dim=1)
    return ids[0, len(prompt) :].tolist()


def run(decoder, bank, answers, room=4, between=lambda step: None):
    """Answers in order, as many at once as there is room for."""
    waiting, step = list(answers), 0
    with bank.attached():
        while waiting or decoder.answers:
            free = room - len(decoder.answers)
            joining, waiting = waiting[:free], waiting[free:]
            decoder.add(joining)
            decoder.step()
            between(step)
            step += 1


@pytest.mark.parametrize("kind", list(TARGETS))
def test_answers_are_those_of_each_adapter_alone(served, kind):
    model, bank, states = served(kind)
    taken = [bank.prepare(state) for state in states]
    lengths = [1, 5, 9, 3, 7, 2, 8, 6]
    asked = list(zip(prompts(8), lengths, strict=True))
    answers = [Answer(p, taken[i % 3], n, Sampler(GREEDY)) for i, (p, n) in enumerate(asked)]
    run(Decoder(model, bank, []), bank, answers)
    wanted = [alone(model, states[i % 3], p, n) for i, (p, n) in enumerate(asked)]
    assert [answer.tokens for answer in answers] == wanted
    assert len({tuple(tokens) for tokens in wanted}) == len(wanted)
    assert {answer.finish for answer in answers} == {"length"}


def test_answers_end_at_an_end_token_which_is_left_out(served):
    model, bank, states = served()
    (prompt,) = prompts(1, seed=4)
    whole = alone(model, states[0], prompt, 6)
    end = whole[3]
    answer = Answer(prompt, bank.prepare(states[0]), 6, Sampler(GREEDY))
    run(Decoder(model, bank, [end]), bank, [answer])
    assert (answer.tokens, answer.finish) == (whole[: whole.index(end)], "stop")


def test_an_answer_may_be_empty(served):
    model, bank, states = served()
    (prompt,) = prompts(1)
    (first,) = alone(model, states[0], prompt, 1)
    answer = Answer(prompt, bank.prepare(states[0]), 6, Sampler(GREEDY))
    run(Decoder(model, bank, [first]), bank, [answer])
    assert (answer.tokens, answer.finish) == ([], "stop")


def test_rows_that_are_dropped_leave_the_others_as_they_were(served):
    model, bank, states = served()
    taken = bank.prepare(states[0])
    answers = [Answer(p, taken, 8, Sampler(GREEDY)) for p in prompts(4, seed=2)]
    decoder = Decoder(model, bank, [])
    run(decoder, bank, answers, between=lambda step: decoder.drop([answers[1], answers[3]]) if step == 2 else None)
    for i in (0, 2):
        assert answers[i].tokens == alone(model, states[0], answers[i].prompt, 8)
    assert [len(answers[i].tokens) for i in (1, 3)] == [4, 4]  # one of the prompt, three of steps
    assert answers[1].finish is None


def test_what_was_decoded_once_costs_nothing_afterwards(served):
    model, bank, states = served()
    decoder = Decoder(model, bank, [])
    run(decoder, bank, [Answer(p, bank.prepare(states[0]), 5, Sampler(GREEDY)) for p in prompts(5)])
    assert decoder.answers == []
    assert not decoder._cache.layers
    assert decoder._mask.numel() == 0


def test_padding_does_not_outlive_the_longest_row(served):
    model, bank, states = served()
    taken = bank.prepare(states[0])
    long, short = Answer(list(range(3, 203)), taken, 2, Sampler(GREEDY)), Answer([5, 6], taken, 30, Sampler(GREEDY))
    decoder = Decoder(model, bank, [])
    with bank.attached():
        decoder.add([long, short])
        decoder.step()
        assert decoder.answers == [short]
        assert decoder._mask.shape == (1, 3)


def test_draws_of_a_row_do_not_depend_on_its_neighbours(served):
    model, bank, states = served()
    taken = bank.prepare(states[0])
    how = Sampling(temperature=1.0, seed=5)
    first = Answer([5, 6, 7], taken, 8, Sampler(how))
    run(Decoder(model, bank, []), bank, [first])
    again = Answer([5, 6, 7], taken, 8, Sampler(how))
    others = [Answer(p, taken, 8, Sampler(Sampling(seed=i))) for i, p in enumerate(prompts(3))]
    run(Decoder(model, bank, []), bank, [others[0], again, *others[1:]])
    assert again.tokens == first.tokens


def test_a_model_with_a_sliding_window_sees_no_further_in_a_batch(random_state):
    import transformers as hf

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    window = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1, "initializer_range": 0.3}
    torch.manual_seed(0)
    base = hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes, **heads, **window)).requires_grad_(False).eval()
    model = create_lora_model(base, r=4, lora_alpha=8, target_modules=["q_proj"]).eval()
    bank, state = AdapterBank(model), random_state(model, 0)
    asked = [[3 + i % 50 for i in range(start, start + length)] for start, length in ((0, 15), (7, 3), (20, 9))]
    answers = [Answer(p, bank.prepare(state), 10, Sampler(GREEDY)) for p in asked]
    run(Decoder(model, bank, []), bank, answers)
    assert [answer.tokens for answer in answers] == [alone(model, state, p, 10) for p in asked]


def test_the_base_answers_beside_adapters(served):
    model, bank, states = served()
    zero = {name: torch.zeros_like(t) for name, t in states[0].items()}
    (prompt,) = prompts(1, seed=3)
    base, other = (Answer(prompt, who, 6, Sampler(GREEDY)) for who in (BankedAdapter({}), bank.prepare(states[1])))
    run(Decoder(model, bank, []), bank, [base, other])
    assert base.tokens == alone(model, zero, prompt, 6)
    assert other.tokens == alone(model, states[1], prompt, 6) != base.tokens
