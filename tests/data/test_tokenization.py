from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing

from fl_lightning.data.record_forms import parse_record
from fl_lightning.data.records import Record, Turn
from fl_lightning.data.tokenization import encode, encode_prompt
from fl_lightning.errors import InputError


@pytest.fixture
def plain_tokenizer(tokenizer):
    """The bundled tokenizer without its chat template."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = None
    return changed


def one(record, tokenizer, max_length=512):
    return encode([parse_record(record)], tokenizer, max_length)[0]


def supervised_text(example, tokenizer):
    return tokenizer.decode(example.ids[example.supervised])


QUESTION = {"prompt": "What is the colour of the sky?", "completion": "It is blue."}
TALK = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First answer"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Second answer"},
    ]
}


def test_loss_is_on_the_response_and_its_end_mark_only(tokenizer):
    example = one(QUESTION, tokenizer)
    assert supervised_text(example, tokenizer) == "It is blue." + tokenizer.eos_token
    assert example.ids[example.supervised][-1] == tokenizer.eos_token_id


def test_prompt_is_what_the_chat_template_gives_for_generation(tokenizer):
    example = one(QUESTION, tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION["prompt"]}], add_generation_prompt=True, tokenize=False
    )
    assert example.ids[~example.supervised].tolist() == tokenizer(prompt)["input_ids"]


def test_supervised_tokens_are_one_run_at_the_end(tokenizer):
    marks = one(QUESTION, tokenizer).supervised.tolist()
    assert marks == sorted(marks)
    assert 0 < sum(marks) < len(marks)


def test_every_assistant_turn_of_a_conversation_is_supervised_with_its_end_mark(tokenizer):
    end = tokenizer.eos_token
    assert supervised_text(one(TALK, tokenizer), tokenizer) == f"First answer{end}Second answer{end}"


def test_conversation_reads_as_the_chat_template_renders_it(tokenizer):
    example = one(TALK, tokenizer)
    rendered = tokenizer.apply_chat_template(TALK["messages"], tokenize=False)
    assert tokenizer.decode(example.ids) == rendered[: rendered.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]


def test_turns_after_the_last_answer_are_left_out(tokenizer):
    longer = {"messages": [*TALK["messages"], {"role": "user", "content": "Three?"}]}
    assert one(longer, tokenizer).ids.tolist() == one(TALK, tokenizer).ids.tolist()


def test_text_record_is_supervised_from_its_second_token_to_the_end_mark(tokenizer):
    example = one({"text": "once upon a time"}, tokenizer)
    assert tokenizer.decode(example.ids) == "once upon a time" + tokenizer.eos_token
    assert example.supervised.tolist() == [False] + [True] * (len(example) - 1)


def test_without_chat_template_loss_is_on_response_and_end_mark(plain_tokenizer):
    example = one(QUESTION, plain_tokenizer)
    assert supervised_text(example, plain_tokenizer) == "It is blue." + plain_tokenizer.eos_token
    assert plain_tokenizer.decode(example.ids).startswith("What is the colour of the sky?")


def test_without_chat_template_every_assistant_turn_is_supervised(plain_tokenizer):
    end = plain_tokenizer.eos_token
    assert supervised_text(one(TALK, plain_tokenizer), plain_tokenizer) == f"First answer{end}Second answer{end}"


def test_first_token_is_never_supervised(plain_tokenizer):
    example = one({"messages": [{"role": "assistant", "content": "Hello there friend"}]}, plain_tokenizer)
    assert not example.supervised[0]
    assert example.supervised[1:].all()


def test_long_prompt_loses_its_beginning_and_the_response_stays_whole(tokenizer):
    record = {"prompt": "word " * 200 + "final", "completion": "It is blue."}
    example = one(record, tokenizer, max_length=40)
    assert len(example) == 40
    assert supervised_text(example, tokenizer) == "It is blue." + tokenizer.eos_token
    assert "final" in tokenizer.decode(example.ids)


def test_long_response_keeps_half_of_the_room_for_the_prompt_and_loses_its_end(tokenizer):
    record = {"prompt": "word " * 200, "completion": "blue sky " * 200}
    example = one(record, tokenizer, max_length=40)
    whole = one(record, tokenizer, max_length=5000)
    assert (len(example), int(example.supervised.sum())) == (40, 20)
    assert example.ids[example.supervised].tolist() == whole.ids[whole.supervised][:20].tolist()


def test_short_prompt_is_kept_whole_before_a_long_response(tokenizer):
    record = {"prompt": "Hi", "completion": "blue sky " * 200}
    example, whole = one(record, tokenizer, max_length=40), one(record, tokenizer, max_length=5000)
    assert example.ids.tolist() == whole.ids[:40].tolist()


def test_long_text_loses_its_end(tokenizer):
    text = {"text": "blue sky over the sea " * 50}
    assert one(text, tokenizer, 16).ids.tolist() == one(text, tokenizer, 5000).ids[:16].tolist()


@pytest.mark.parametrize("max_length", [8, 9, 13, 64])
def test_no_example_is_longer_than_max_length_and_each_has_targets(tokenizer, max_length):
    records = [QUESTION, TALK, {"text": "a b c d e f g h i j"}, {"prompt": "w " * 99, "completion": "y " * 99}]
    for example in encode([parse_record(r) for r in records], tokenizer, max_length):
        assert len(example) <= max_length
        assert example.supervised.any()


def test_record_of_a_single_token_is_refused_with_its_place(plain_tokenizer):
    plain_tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"train\.jsonl: record 1: no response tokens"):
        encode([Record([Turn("text", "a long text")]), Record([Turn("text", "a")])], plain_tokenizer, 64, "train.jsonl")


def test_chat_template_that_raises_is_an_input_error(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="no system role"):
        one(QUESTION, strict)


def test_chat_template_that_rewrites_earlier_turns_is_rendered_once(tokenizer):
    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    example = one(TALK, rewriting)
    assert rewriting.decode(example.ids) == "5[Be short.][One?][First answer][Two?][Second answer<|im_end|>"


def test_beginning_mark_written_by_the_chat_template_is_not_doubled(tokenizer):
    marked = copy.deepcopy(tokenizer)
    marked.bos_token = "<|im_start|>"
    marked.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", marked.bos_token_id)]
    )
    messages = [{"role": "user", "content": QUESTION["prompt"]}]
    wanted = marked.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    example = one(QUESTION, marked)
    assert marked("a")["input_ids"][0] == marked.bos_token_id
    assert example.ids[~example.supervised].tolist() == wanted


def test_beginning_mark_of_the_tokenizer_stands_before_a_text_record(plain_tokenizer):
    plain_tokenizer.bos_token = "<|im_start|>"
    plain_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", plain_tokenizer.bos_token_id)]
    )
    ids = one({"prompt": "a question", "completion": "an answer"}, plain_tokenizer).ids.tolist()
    assert ids[0] == plain_tokenizer.bos_token_id
    assert ids.count(plain_tokenizer.bos_token_id) == 1


def test_examples_read_like_a_list_and_cost_five_bytes_a_token():
    import torch

    from fl_lightning.data.tokenization import Examples

    examples = Examples([[5, 6, 7], [], [70000]], [[False, True, True], [], [False]])
    assert len(examples) == 3
    assert [e.ids.tolist() for e in examples] == [[5, 6, 7], [], [70000]]
    assert examples[-1].ids.dtype == torch.int64
    assert examples[0].supervised.tolist() == [False, True, True]
    assert [e.ids.tolist() for e in examples[:2]] == [[5, 6, 7], []]
    with pytest.raises(IndexError):
        examples[3]
    assert examples._ids.nbytes + examples._supervised.nbytes == 5 * 4


def turns(*contents, system=None):
    """A conversation that a user begins and ends."""
    said = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(contents)]
    return [*([Turn("system", system)] if system else []), *said]


def test_prompt_of_a_question_is_what_a_record_has_before_its_response(tokenizer):
    example = one(QUESTION, tokenizer)
    assert encode_prompt(turns(QUESTION["prompt"]), tokenizer) == example.ids[~example.supervised].tolist()


@pytest.mark.parametrize("plain", [False, True])
def test_prompt_of_a_conversation_is_cut_into_tokens_as_its_record_is(tokenizer, plain_tokenizer, plain):
    used = plain_tokenizer if plain else tokenizer
    said = turns("One?", "First answer", "Two?", system="Be short.")
    last = one(TALK, used).supervised.tolist()
    start = len(last) - last[::-1].index(False)  # of the last response
    assert encode_prompt(said, used) == one(TALK, used).ids[:start].tolist()


def test_prompt_reads_as_the_chat_template_renders_it_for_generation(tokenizer):
    said = turns("One?", "First answer", "Two?", system="Be short.")
    messages = [{"role": turn.role, "content": turn.content} for turn in said]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encode_prompt(said, tokenizer)) == rendered


def test_prompt_without_chat_template_ends_every_turn_as_a_record_does(plain_tokenizer):
    ids = encode_prompt(turns("One?", "First answer", "Two?"), plain_tokenizer)
    assert plain_tokenizer.decode(ids) == f"One?\n\nFirst answer{plain_tokenizer.eos_token}Two?\n\n"


def test_prompt_of_a_template_that_rewrites_earlier_turns_is_that_of_the_template(tokenizer):
    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ids = encode_prompt(turns("a", "b", "c"), rewriting)
    assert rewriting.decode(ids) == "3abc"


def test_prompt_of_a_template_that_raises_is_an_input_error(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    assert encode_prompt(turns("Hi"), strict)
    with pytest.raises(InputError, match=r"messages: the tokenizer's chat template refuses these turns \(no system\)"):
        encode_prompt(turns("Hi", system="Be short."), strict)


def test_prompt_without_tokens_is_refused(tokenizer):
    empty = copy.deepcopy(tokenizer)
    empty.chat_template = "{{ messages[0]['content'] }}"
    assert encode_prompt(turns("x"), empty)
    with pytest.raises(InputError, match="expected at least one word, got no tokens"):
        encode_prompt(turns(""), empty)


@pytest.mark.parametrize("plain", [False, True])
def test_prompt_has_the_beginning_mark_once(tokenizer, plain_tokenizer, plain):
    marked = copy.deepcopy(plain_tokenizer if plain else tokenizer)
    marked.bos_token = "<|im_start|>"
    marked.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", marked.bos_token_id)]
    )
    ids = encode_prompt(turns("One?", "First answer", "Two?"), marked)
    assert ids[0] == marked.bos_token_id
    assert ids[1] != marked.bos_token_id
    if plain:
        assert ids.count(marked.bos_token_id) == 1


@pytest.mark.parametrize(
    "turn", [{"tool_calls": [{"function": {"name": "now", "arguments": {}}}]}, {"role": "tool", "content": "noon"}]
)
def test_tools_without_a_chat_template_are_refused(plain_tokenizer, turn):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **turn}]
    record = parse_record({"messages": [*messages, {"role": "assistant", "content": "b"}]})
    with pytest.raises(InputError, match=r"train\.jsonl: record 0: expected a conversation without tools"):
        encode([record], plain_tokenizer, 64, "train.jsonl")
    with pytest.raises(InputError, match="messages: expected a conversation without tools"):
        encode_prompt(record[:2], plain_tokenizer)
