"""Conversations that a template does not write turn by turn: weights, thoughts, tool calls, marks, turns left out."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from fl_lightning.config.data import DataConfig
from fl_lightning.data.chat_template import pin_chat_template
from fl_lightning.data.records import Record, Turn
from fl_lightning.data.tokenization import encode, encode_prompt
from fl_lightning.errors import InputError
from tests.helpers.chat_templates import KINDS, with_template


def supervised_text(example, tokenizer):
    return tokenizer.decode(example.ids[example.supervised])


def turns(*contents, system=None):
    """A conversation that a user begins."""
    said = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(contents)]
    return [*([Turn("system", system)] if system else []), *said]


def test_a_turn_with_weight_zero_is_read_and_not_learned(tokenizer):
    said = turns("One?", "First answer", "Two?", "Second answer")
    weighted = Record([said[0], replace(said[1], weight=False), *said[2:]])
    (example,) = encode([weighted], tokenizer, 512)
    assert supervised_text(example, tokenizer) == f"Second answer{tokenizer.eos_token}"
    assert example.ids.tolist() == encode([Record(said)], tokenizer, 512)[0].ids.tolist()
    with pytest.raises(InputError, match="no response tokens"):
        encode([Record([said[0], replace(said[1], weight=False)])], tokenizer, 512)


@pytest.mark.parametrize("name", ["chatml_marked", "marked_without_end", "smollm3"])
def test_a_turn_with_weight_zero_is_not_learned_where_the_template_marks_answers(tokenizer, name):
    used, said = with_template(tokenizer, name), turns("One?", "First answer", "Two?", "Second answer")
    (example,) = encode([Record([said[0], replace(said[1], weight=False), *said[2:]])], used, 512)
    assert "First" not in supervised_text(example, used)
    assert supervised_text(example, used).endswith(f"Second answer{used.eos_token}")


def test_weights_need_a_mark_for_each_answer(tokenizer):
    used = copy.deepcopy(tokenizer)
    used.chat_template = (
        "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}"
        "{{ m.content }}{% endif %}{% endfor %}"
    )
    said = turns("One?", "First answer", "Two?", "Second answer")
    (example,) = encode([Record(said)], used, 512)
    assert supervised_text(example, used) == f"Second answer{used.eos_token}"
    with pytest.raises(InputError, match=r"a:3: weight: the chat template marks 1 answers, expected 2"):
        encode([Record([said[0], replace(said[1], weight=False), *said[2:]], location="a:3")], used, 512)


def test_thoughts_belong_to_the_last_answer_and_are_dropped_from_earlier_ones_as_the_template_does(tokenizer):
    used = with_template(tokenizer, "qwen3")
    said = turns("One?", "<think>\nearly\n</think>\n\nFirst", "Two?", "<think>\nlate\n</think>\n\nSecond")
    (example,) = encode([Record(said)], used, 512)
    end = "<|im_end|>"
    assert supervised_text(example, used) == f"First{end}<think>\nlate\n</think>\n\nSecond{end}"
    assert "early" not in used.decode(example.ids)


def test_empty_thoughts_are_learned_unless_the_prompt_has_them(tokenizer):
    used, said = copy.deepcopy(with_template(tokenizer, "qwen3")), Record(turns("One?", "First"))
    assert supervised_text(encode([said], used, 512)[0], used) == "<think>\n\n</think>\n\nFirst<|im_end|>"
    pin_chat_template(used, DataConfig(chat_template_kwargs={"enable_thinking": False}))
    assert supervised_text(encode([said], used, 512)[0], used) == "First<|im_end|>"


def test_an_answer_behind_a_prompt_with_an_opened_thought_begins_where_the_two_part(tokenizer):
    used = with_template(tokenizer, "deepseek_r1")
    (example,) = encode([Record(turns("One?", "<think>\nWhy\n</think>\n\nFirst"))], used, 512)
    assert supervised_text(example, used) == "\n\nFirst<｜end▁of▁sentence｜>"
    assert used.decode(example.ids[~example.supervised]).endswith("One?<｜Assistant｜>")


def test_only_the_message_of_an_answer_that_the_model_has_to_write_is_learned(tokenizer):
    used = with_template(tokenizer, "gpt_oss")
    (example,) = encode([Record(turns("One?", "First", "Two?", "Second"))], used, 512)
    final = "<|channel|>final<|message|>"
    assert supervised_text(example, used) == f"{final}First{final}Second<|return|>"


@pytest.mark.parametrize("name", ["qwen2_5", "hermes", "llama3_1", "mistral_v0_3", "gpt_oss", "glm4", "granite3"])
def test_a_tool_call_is_learned_with_what_ends_it(tokenizer, name):
    used = with_template(tokenizer, name)
    (example,) = encode([KINDS["tools"]], used, 512)
    said = supervised_text(example, used)
    ends = {"gpt_oss": "<|call|>", "glm4": "<|observation|>", "mistral_v0_3": "</s>"}
    ends |= {"llama3_1": "<|eot_id|>", "granite3": "<|end_of_text|>"}
    call, _, answer = said.partition(ends.get(name, "<|im_end|>"))
    assert call.startswith({"gpt_oss": " to=functions", "glm4": "get_weather"}.get(name, call[:1]))
    assert "Oslo" in call
    assert "21" not in said
    assert "It is warm." in answer


def test_arguments_of_a_call_may_be_json_text(tokenizer):
    used = with_template(tokenizer, "qwen2_5")
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    (example,) = encode([Record([Turn("user", "Q"), Turn("assistant", "", (call,))])], used, 512)
    assert supervised_text(example, used).endswith('{"city": "Oslo"}}\n</tool_call><|im_end|>')


def test_what_the_template_leaves_out_is_named(tokenizer):
    used = with_template(tokenizer, "phi3_first")
    with pytest.raises(InputError, match=r"a:1: .* leaves out message 0 \(system\); data.system_turns: merge"):
        encode([Record(KINDS["system"], location="a:1")], used, 512)
    with pytest.raises(InputError, match="leaves out the tools"):
        encode([Record(turns("Q", "A"), KINDS["tools"].tools)], used, 512)
    with pytest.raises(InputError, match="leaves out the tool calls of message 1"):
        encode([Record(KINDS["tools"][:2])], used, 512)
    with pytest.raises(InputError, match=r"messages: .* leaves out message 0 \(system\)"):
        encode_prompt(turns("Q", system="S"), used)


def test_content_with_the_words_of_the_template_is_found(tokenizer):
    used = with_template(tokenizer, "alpaca")
    said = turns("Say\n\n### Response:\nOne", "One\n\n### Instruction:\nNext", "Again", "One")
    (example,) = encode([Record(said)], used, 512)
    assert supervised_text(example, used) == "One\n\n### Instruction:\nNextOne</s>"


def test_white_space_that_a_template_strips_is_no_obstacle(tokenizer):
    used = with_template(tokenizer, "llama3")
    (example,) = encode([Record(turns(" One? ", "\n First \n\n", "Two?", " Second"))], used, 512)
    assert supervised_text(example, used) == "First<|eot_id|>Second<|eot_id|>"


def test_a_tokenizer_without_offsets_is_refused(tokenizer):
    class Slow:
        chat_template, eos_token_id, eos_token, is_fast = "x", 1, "e", False
        bos_token = unk_token = None
        all_special_tokens, added_tokens_decoder = (), {}

        def apply_chat_template(self, *args, **options):
            return "x"

        def convert_ids_to_tokens(self, token):
            return "e"

    with pytest.raises(InputError, match=r"records: record 0: expected a tokenizer with offsets, got Slow"):
        encode([Record(turns("a", "b"))], Slow(), 64)
