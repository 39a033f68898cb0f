from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data.records import Turn, parse_record, read_records
from fl_lightning.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["instruction", "input", "output", "prompt", "completion", "messages", "text", "role", "content"]
)
RECORD_LIKE = st.dictionaries(KEYS, JSON | st.text(min_size=1), max_size=5)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": JSON})


def test_instruction_record_joins_instruction_and_input_into_the_prompt():
    turns = parse_record({"instruction": "Add", "input": "1 1", "output": "2"})
    assert turns == [Turn("user", "Add\n\n1 1"), Turn("assistant", "2")]


@pytest.mark.parametrize("extra", [{}, {"input": ""}, {"input": None}, {"input": "  "}])
def test_instruction_record_without_input_has_the_instruction_alone_as_prompt(extra):
    assert parse_record({"instruction": "Say hi", "output": "hi", **extra})[0].content == "Say hi"


def test_prompt_completion_record_becomes_a_user_and_an_assistant_turn():
    assert parse_record({"prompt": "p", "completion": "c"}) == [Turn("user", "p"), Turn("assistant", "c")]


def test_messages_keep_roles_and_order():
    messages = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant", "user", "assistant")]
    assert [(t.role, t.content) for t in parse_record({"messages": messages})] == [
        ("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u"), ("assistant", "a")
    ]  # fmt: skip


def test_text_record_is_one_supervised_turn():
    assert [(t.role, t.supervised) for t in parse_record({"text": "once"})] == [("text", True)]


def test_only_assistant_and_text_turns_are_supervised():
    assert [Turn(r, "x").supervised for r in ("system", "user", "assistant", "text")] == [False, False, True, True]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "got int"),
        (["a"], "got list"),
        ({}, "wanted {instruction"),
        ({"question": "q"}, "question"),
        ({"instruction": "a"}, "output"),
        ({"output": "a"}, "instruction"),
        ({"instruction": "a", "output": " "}, "output"),
        ({"instruction": "a", "input": 4, "output": "b"}, "input"),
        ({"prompt": "a", "completion": 1}, "completion"),
        ({"completion": "a"}, "prompt"),
        ({"text": None}, "text"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "message 0"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "assistant"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "content"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "role"),
    ],
)
def test_incomplete_record_is_refused_with_the_reason(value, said):
    with pytest.raises(ValueError, match=said.replace("{", r"\{")):
        parse_record(value)


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "a\ud800", "output": "b"},
        {"instruction": "a", "output": "\udfff"},
        {"instruction": "a", "input": "half \ud83d", "output": "b"},
        {"text": "\ud800"},
        {"messages": [{"role": "assistant", "content": "\ud800"}]},
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(value):
    with pytest.raises(ValueError, match="surrogate"):
        parse_record(value)


@settings(max_examples=150, deadline=None)
@given(JSON | RECORD_LIKE | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}))
def test_any_json_value_is_a_record_with_a_response_or_a_value_error(value):
    try:
        turns = parse_record(value)
    except ValueError:
        return
    assert any(turn.supervised for turn in turns)
    assert all(isinstance(turn.content, str) and turn.content.encode() for turn in turns)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()), st.sampled_from([".jsonl", ".json"]))
def test_any_bytes_in_a_file_are_records_or_an_input_error(content, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train{ending}"
        path.write_bytes(content)
        try:
            records = read_records(path)
        except InputError as error:
            outcome = str(error)
        else:
            outcome = f"{path}: {len(records)} records"
            assert records
        assert outcome.startswith(str(path))


def test_jsonl_is_read_in_order_and_blank_lines_are_passed_over(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a"}\n\n  \n{"text": "b"}\n')
    assert [r[0].content for r in read_records(path)] == ["a", "b"]


def test_json_list_is_read_in_order(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"text": "a"}, {"text": "b"}]')
    assert [r[0].content for r in read_records(path)] == ["a", "b"]


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert [r[0].content for r in read_records(path)] == ["a", "b"]


def test_unicode_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_records(path)[0][0].content == "a\u2028b"


@pytest.mark.parametrize(
    "line", ['{"text": ', '{"txt": "a"}', "[1]", '{"text": ""}', "[" * 100_000, '{"text": ' + "9" * 5000 + "}"]
)
def test_malformed_line_names_file_and_line(tmp_path, line):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(InputError) as caught:
        read_records(path)
    assert f"{path}:3: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_malformed_json_list_names_file_and_line(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[\n{"text": "a"},\n{"text": }\n]')
    with pytest.raises(InputError, match=r"train\.json:3: "):
        read_records(path)


def test_bad_entry_of_a_json_list_names_its_index(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"text": "a"}, {"text": 1}]')
    with pytest.raises(InputError, match="record 1"):
        read_records(path)


@pytest.mark.parametrize("content", ["", "\n\n", " \n"])
def test_file_without_records_is_refused(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match="no records"):
        read_records(path)


def test_json_object_in_place_of_a_list_is_refused(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('{"text": "a"}')
    with pytest.raises(InputError, match="wanted a list"):
        read_records(path)


def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(InputError, match="byte 10"):
        read_records(path)


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
