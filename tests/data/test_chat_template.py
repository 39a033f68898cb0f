from __future__ import annotations

import copy
import math
from datetime import date

import pytest

from fl_lightning.config.data import DataConfig
from fl_lightning.data.chat_template import pin_chat_template, pin_date, render
from fl_lightning.data.records import Record, Turn
from fl_lightning.data.tokenization import encode, encode_prompt
from fl_lightning.errors import InputError
from tests.helpers.chat_templates import KINDS, TALK, with_template


@pytest.fixture
def pinned(tokenizer):
    """A function: a template's tokenizer with choices of the ``data`` block."""

    def make(name, **choices):
        changed = copy.deepcopy(with_template(tokenizer, name))
        pin_chat_template(changed, DataConfig(**choices))
        return changed

    return make


def plain(tokenizer, name, turns, **variables):
    """transformers' own text of a conversation."""
    messages = [turn.as_message() for turn in turns]
    return with_template(tokenizer, name).apply_chat_template(messages, tokenize=False, **variables)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "mistral_v0_3", "gpt_oss"])
def test_the_default_leaves_the_template_as_it_is(pinned, tokenizer, name):
    assert pinned(name).chat_template == with_template(tokenizer, name).chat_template


@pytest.mark.parametrize("value", [True, False])
def test_a_variable_is_what_apply_chat_template_takes_as_a_keyword(pinned, tokenizer, value):
    used = pinned("qwen3", chat_template_kwargs={"enable_thinking": value})
    expected = plain(tokenizer, "qwen3", TALK[:1], enable_thinking=value, add_generation_prompt=True)
    assert used.decode(encode_prompt(TALK[:1], used)) == expected


def test_a_variable_of_any_json_type_is_passed(pinned, tokenizer):
    value = {"a": [1, 2.5, None, True, 'it\'s {{ x }} "quoted" %}']}
    used = copy.deepcopy(tokenizer)
    used.chat_template = "{{ extra.a | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    expected = used.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, extra=value)
    pin_chat_template(used, DataConfig(chat_template_kwargs={"extra": value}))
    assert render([Turn("user", "x")], used, "here") == expected


def test_a_variable_that_the_template_does_not_have_is_refused(pinned):
    message = r"data\.chat_template_kwargs: .* got 'enable_thinkin'; did you mean 'enable_thinking'"
    with pytest.raises(InputError, match=message):
        pinned("qwen3", chat_template_kwargs={"enable_thinkin": False})


@pytest.mark.parametrize("name", ["think", "if", "message", "im_start"])
def test_a_word_of_the_template_that_it_takes_from_nowhere_is_no_variable(pinned, name):
    with pytest.raises(InputError, match=rf"data\.chat_template_kwargs: .* got '{name}'"):
        pinned("qwen3", chat_template_kwargs={name: False})


def test_a_variable_that_one_of_several_templates_has_is_taken(tokenizer):
    used = copy.deepcopy(tokenizer)
    used.chat_template = {"default": "{{ x }}{{ messages[0].content }}", "rag": "{{ messages[0].content }}"}
    pin_chat_template(used, DataConfig(chat_template_kwargs={"x": 3}))
    assert render(TALK[:1], used, "here") == "3Who was first?"


@pytest.mark.parametrize("value", [math.nan, math.inf, date(2024, 1, 1), "\ud800", {"a": [{1}]}])
def test_a_variable_whose_value_is_not_json_is_refused(value):
    with pytest.raises(InputError, match=r"data\.chat_template_kwargs: expected values of JSON"):
        DataConfig(chat_template_kwargs={"x": value})


def test_a_mistake_in_a_template_is_named_with_its_line_and_no_record_is_blamed(tokenizer):
    text = "{% for m in messages %}\n{{ m.content }\n{% endfor %}"
    used = copy.deepcopy(tokenizer)
    with pytest.raises(InputError, match=r"^data\.chat_template: .* line 2 "):
        pin_chat_template(used, DataConfig(chat_template=text))
    used.chat_template = text
    with pytest.raises(InputError, match=r"^model\.name_or_path: the tokenizer's chat template: .* line 2 "):
        pin_chat_template(used, DataConfig())


def test_marks_of_a_template_that_mark_nothing_are_named(tokenizer):
    used = copy.deepcopy(tokenizer)
    used.chat_template = "{# {% generation %} #}" + tokenizer.chat_template
    with pytest.raises(
        InputError, match=r"here: record 0: the chat template has \{% generation %\} and marks no answer"
    ):
        encode([Record(TALK[:2])], used, 64, "here")


@pytest.mark.parametrize("name", ["gemma", "gpt_oss", "llama3", "mistral_v0_1", "chatml", "qwen3"])
def test_merge_puts_the_system_turn_into_the_first_user_turn(pinned, tokenizer, name):
    used = pinned(name, system_turns="merge")
    system, first, *rest = KINDS["system"]
    merged = [Turn("user", f"{system.content}\n\n{first.content}"), *rest]
    assert render(KINDS["system"], used, "here") == plain(tokenizer, name, merged)
    assert render(TALK, used, "here") == plain(tokenizer, name, TALK)
    greeting = [Turn("system", "S"), Turn("assistant", "Hello"), Turn("user", "Q"), Turn("assistant", "A")]
    if name == "chatml":
        expected = [Turn("assistant", "Hello"), Turn("user", "S\n\nQ"), Turn("assistant", "A")]
        assert render(greeting, used, "here") == plain(tokenizer, name, expected)


def test_a_system_turn_that_cannot_be_merged_is_refused(pinned):
    used = pinned("chatml", system_turns="merge")
    with pytest.raises(InputError, match=r"leaves out message 0 \(system\)"):
        encode([Record([Turn("system", "S"), Turn("assistant", "Hello")])], used, 64)


def test_a_template_without_system_turn_names_the_key(pinned):
    with pytest.raises(InputError, match=r"train\.jsonl:7: .*System role not supported.*data\.system_turns: merge"):
        encode([Record(KINDS["system"], location="train.jsonl:7")], pinned("gemma"), 64)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_refuse_refuses_system_turns_only(pinned, role):
    used = pinned("chatml", system_turns="refuse")
    assert encode([KINDS["two turns"]], used, 64)
    with pytest.raises(InputError, match=r"train\.jsonl:7: .*data\.system_turns is refuse"):
        encode([Record([Turn(role, "S"), *TALK], location="train.jsonl:7")], used, 64)


@pytest.mark.parametrize("name", ["llama3_2", "gpt_oss", "granite3_2", "smollm3"])
def test_a_template_with_a_clock_writes_the_date_that_is_pinned(pinned, tokenizer, name):
    today = date.today()
    used = pinned(name, template_date=today.isoformat())
    assert "strftime_now(" not in used.chat_template
    assert render(TALK, used, "here") == plain(tokenizer, name, TALK)
    assert "2024" in render(TALK, pinned(name, template_date="2024-02-29"), "here")


def test_a_run_keeps_the_date_only_where_the_template_writes_it(tokenizer):
    data = DataConfig()
    pin_date(data, with_template(tokenizer, "chatml"))
    assert data.template_date is None
    pin_date(data, with_template(tokenizer, "llama3_2"))
    assert data.template_date == date.today().isoformat()
    kept = DataConfig(template_date="2024-02-29")
    pin_date(kept, with_template(tokenizer, "llama3_2"))
    assert kept.template_date == "2024-02-29"


def test_a_clock_that_cannot_be_pinned_is_refused(pinned, tokenizer):
    used = copy.deepcopy(tokenizer)
    used.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }}{{ messages[0].content }}"
    with pytest.raises(InputError, match=r"data\.template_date: .*strftime_now with a text"):
        pin_chat_template(used, DataConfig(template_date="2024-02-29"))


def test_a_template_may_come_from_a_file_and_named_templates_are_all_pinned(tmp_path, tokenizer):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    used = copy.deepcopy(tokenizer)
    pin_chat_template(used, DataConfig(chat_template=str(path)))
    assert render(TALK[:2], used, "here") == "[Who was first?][Ann came first.]"
    used.chat_template = {"default": "{{ x }}{{ messages[0].content }}", "tool_use": "{{ x }}T{{ tools[0].name }}"}
    pin_chat_template(used, DataConfig(chat_template_kwargs={"x": 3}))
    assert render(TALK[:1], used, "here") == "3Who was first?"
    assert render(TALK[:1], used, "here", tools=[{"name": "f"}]) == "3Tf"


@pytest.mark.parametrize("choices", [{"chat_template_kwargs": {"a": 1}}, {"system_turns": "merge"}])
def test_choices_about_a_template_need_one(tokenizer, choices):
    used = copy.deepcopy(tokenizer)
    used.chat_template = None
    pin_chat_template(used, DataConfig())
    with pytest.raises(InputError, match=rf"data\.{next(iter(choices))}: the tokenizer has no chat template"):
        pin_chat_template(used, DataConfig(**choices))


def test_a_tokenizer_that_renders_without_a_template_is_refused():
    backend = type("MistralCommonBackend", (), {})()
    with pytest.raises(InputError, match="mistral-common, which has no chat template"):
        pin_chat_template(backend, DataConfig())


def test_a_developer_turn_is_a_system_turn_unless_the_template_knows_the_role(tokenizer):
    developer, system = ([Turn(role, "Be short."), *TALK[:2]] for role in ("developer", "system"))
    qwen, gpt_oss = (with_template(tokenizer, name) for name in ("qwen2_5", "gpt_oss"))
    assert render(developer, qwen, "here") == plain(tokenizer, "qwen2_5", system)
    assert render(developer, gpt_oss, "here") == plain(tokenizer, "gpt_oss", developer)
