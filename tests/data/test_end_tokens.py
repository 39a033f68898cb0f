from __future__ import annotations

import copy
import types

import pytest
from transformers import GenerationConfig

from fl_lightning.data.end_tokens import find_end_tokens


def of_base(**values):
    return types.SimpleNamespace(**values)


def test_the_mark_of_the_template_comes_before_the_end_token_of_the_tokenizer_and_those_of_the_base(tokenizer):
    base_model = copy.deepcopy(tokenizer)
    base_model.eos_token = "<|endoftext|>"
    mark, end = base_model.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert find_end_tokens(base_model) == (mark, end)
    assert find_end_tokens(base_model, of_base(eos_token_id=[end, 7])) == (mark, end, 7)


@pytest.mark.parametrize("configured", [None, 2, [2], [2, 2]])
def test_tokens_are_not_repeated(tokenizer, configured):
    assert find_end_tokens(tokenizer, of_base(eos_token_id=configured)) == (2,)


def test_a_base_without_template_and_end_token_has_none(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = bare.eos_token = None
    assert find_end_tokens(bare) == ()
    assert find_end_tokens(bare, of_base(eos_token_id=5)) == (5,)
    assert find_end_tokens(bare, of_base()) == ()


def test_text_behind_an_answer_that_is_no_token_is_not_an_end(tokenizer):
    textual = copy.deepcopy(tokenizer)
    textual.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}[DONE]{% endfor %}"
    textual.eos_token = "<|endoftext|>"
    assert find_end_tokens(textual) == (textual.eos_token_id,)


def test_a_template_that_refuses_every_probe_leaves_the_end_token_of_the_tokenizer(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no') }}"
    assert find_end_tokens(strict) == (2,)


def test_a_negative_id_in_the_generation_config_stands_for_no_token(tokenizer):
    assert find_end_tokens(tokenizer, GenerationConfig(eos_token_id=[-1, 7])) == (2, 7)
