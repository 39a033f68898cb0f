import pytest
import torch

from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.generation.generate import generate, split


def example(ids, marks):
    return Example(torch.tensor(ids), torch.tensor(marks, dtype=torch.bool))


@pytest.mark.parametrize(
    ("marks", "prompt", "answer"),
    [
        ([0, 0, 1, 1], [5, 6], [7, 8]),
        ([0, 1, 0, 1], [5, 6, 7], [8]),  # two turns: the last one is asked for
        ([0, 1, 1, 0], [5], [6, 7]),  # what follows the response is dropped
        ([0, 1, 1, 1], [5], [6, 7, 8]),  # plain text: from its first token on
    ],
)
def test_a_record_is_cut_before_its_last_response(marks, prompt, answer):
    assert [part.tolist() for part in split(example([5, 6, 7, 8], marks))] == [prompt, answer]


@pytest.fixture(scope="module")
def tiny(loaded_tiny_base):
    return loaded_tiny_base[0].eval()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ["How do I list files?\n\n", "x\n\n", "Write a policy on leave for all staff\n\n"]
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]


def greedy(model, prompt, steps, end):
    """One token after another, without cache, padding or `generate`."""
    ids = prompt
    for _ in range(steps):
        token = model(input_ids=ids[None], use_cache=False).logits[0, -1].argmax()
        if token == end:
            break
        ids = torch.cat([ids, token[None]])
    return ids[len(prompt) :]


@torch.no_grad()
def test_answers_are_the_greedy_ones_of_each_prompt_alone(tiny, tokenizer, prompts):
    wanted = [greedy(tiny, prompt, 6, tokenizer.eos_token_id).tolist() for prompt in prompts]
    for size in (1, 2, 16):
        got = generate(tiny, prompts, max_new_tokens=6, ends=[tokenizer.eos_token_id], batch_size=size)
        assert [answer.tolist() for answer in got] == wanted


@torch.no_grad()
def test_an_answer_ends_before_the_end_token(tiny, tokenizer, prompts):
    wanted = greedy(tiny, prompts[0], 6, None).tolist()
    (got,) = generate(tiny, prompts[:1], max_new_tokens=6, ends=[wanted[3]])
    assert got.tolist() == wanted[: wanted.index(wanted[3])]


def test_an_empty_prompt_is_refused(tiny):
    with pytest.raises(ValueError, match="expected at least one token in each"):
        generate(tiny, [torch.empty(0, dtype=torch.long)], max_new_tokens=1, ends=[])


def test_answers_stop_at_the_last_position_and_others_are_not_shortened(micro_model):
    model = micro_model("gpt2")  # 512 learned positions
    lengths = (512, 508, 300)
    prompts = [torch.arange(length) % 100 + 5 for length in lengths]
    answers = generate(model, prompts, max_new_tokens=8, ends=())
    assert [len(answer) for answer in answers] == [0, 4, 8]
    assert answers[2].tolist() == generate(model, prompts[2:], max_new_tokens=8, ends=())[0].tolist()
