"""Every kind of conversation by every template: the reference is transformers' own `apply_chat_template`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_lightning.data.end_tokens import find_end_tokens
from fl_lightning.data.records import Record
from fl_lightning.data.tokenization import encode
from fl_lightning.errors import InputError
from tests.helpers.chat_templates import KINDS, names, table, with_template

ENDS = {
    "alpaca": "</s>", "chatml": "<|im_end|>", "chatml_marked": "<|im_end|>", "chatml_with_bos": "<|im_end|>",
    "command_r": "<|END_OF_TURN_TOKEN|>", "deepseek_r1": "<｜end▁of▁sentence｜>",
    "deepseek_v3": "<｜end▁of▁sentence｜>", "exaone": "[|endofturn|]", "falcon": "<|endoftext|>",
    "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "glm4": "<|user|>", "gpt_oss": "<|return|>",
    "granite3": "<|end_of_text|>", "granite3_2": "<|end_of_text|>", "hermes": "<|im_end|>", "llama2": "</s>",
    "llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>", "llama3_2": "<|eot_id|>", "marked_without_end": "</s>",
    "minicpm": "<用户>", "mistral_v0_1": "</s>", "mistral_v0_2": "</s>", "mistral_v0_3": "</s>",
    "nemotron": "<extra_id_1>", "olmo2": "<|endoftext|>", "openchat": "<|end_of_turn|>", "phi3": "<|end|>",
    "phi3_first": "<|end|>", "phi4": "<|im_end|>", "phi4_mini": "<|end|>", "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>", "smollm3": "<|im_end|>", "solar": "</s>", "starchat": "<|end|>", "vicuna": "</s>",
    "zephyr": "</s>",
}  # fmt: skip
"""{template: the token that ends an answer}."""
NO_END_INSIDE = {"alpaca", "falcon", "solar", "gpt_oss"}
"""Templates that write no such token behind an earlier answer."""


def runs(example):
    """The supervised token ids, one list for each run."""
    result, before = [], False
    for token, mark in zip(example.ids.tolist(), example.supervised.tolist(), strict=True):
        if mark and not before:
            result.append([])
        if mark:
            result[-1].append(token)
        before = mark
    return result


def reference(record, tokenizer):
    messages = [turn.as_message() for turn in record]
    return tokenizer.apply_chat_template(messages, tools=record.tools or None, tokenize=True, return_dict=False)


@pytest.mark.parametrize("name", names())
def test_the_end_of_an_answer_is_the_one_that_the_template_writes(tokenizer, name):
    used = with_template(tokenizer, name)
    ends = find_end_tokens(used)
    assert used.convert_ids_to_tokens(ends[0]) == ENDS[name]
    assert used.eos_token_id in ends


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", names())
def test_tokens_are_those_of_the_template_and_answers_alone_are_supervised(tokenizer, name, kind):
    used, record = with_template(tokenizer, name), KINDS[kind]
    try:
        expected = reference(record, used)
    except Exception:
        with pytest.raises(InputError, match=r"records: record 0: the tokenizer's chat template refuses these turns"):
            encode([record], used, 4096)
        return
    if name == "mistral_v0_3" and kind == "system":  # only a prompt has the system turn
        answer = used(" Bob.</s>", add_special_tokens=False)["input_ids"]
        expected = reference(Record(record[:-1]), used) + answer
    text = used.decode(expected)
    lost = any(turn.content.strip() not in text for turn in record)
    if record.tools:
        lost = lost or "Oslo" not in text.partition("How warm is it in Oslo?")[2]
        lost = lost or expected == reference(Record(record), used)  # the template ignores tools
    if lost:
        with pytest.raises(InputError, match="leaves out"):
            encode([record], used, 4096)
        return
    (example,) = encode([record], used, 4096)
    ids, end = example.ids.tolist(), used.convert_tokens_to_ids(ENDS[name])
    written = ids if ids == expected[: len(ids)] else ids[:-1]  # an end token may be appended
    assert written == expected[: len(written)]
    answers = [turn for turn in record if turn.role == "assistant"]
    labels = runs(example)
    assert len(labels) == len(answers)
    for label, answer in zip(labels, answers, strict=True):
        said = used.decode(label)
        assert (answer.content or "Oslo") in said
        assert not any(turn.content in said for turn in record if turn.content and turn is not answer)
        if answer is answers[-1] or name not in NO_END_INSIDE:
            assert label[-1] == end or answer.tool_calls
            assert label.count(end) == 1 or answer.tool_calls
    unsupervised = used.decode(example.ids[~example.supervised])
    assert not any(answer.content in unsupervised for answer in answers if answer.content)


def test_the_table_in_the_documentation_is_what_happens(tokenizer):
    docs = Path(__file__).parents[2] / "docs/models.md"
    assert table(tokenizer) in docs.read_text(encoding="utf-8")
