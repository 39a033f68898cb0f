from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data.record_files import read_records
from fl_lightning.data.record_forms import parse_record
from fl_lightning.data.records import Turn
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


def test_weight_false_excludes_an_assistant_turn_from_the_loss():
    assert not Turn("assistant", "x", weight=False).supervised


def test_a_turn_gives_a_template_only_the_keys_that_it_has():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert Turn("user", "x", weight=False).as_message() == {"role": "user", "content": "x"}
    assert Turn("assistant", "", (call,)).as_message() == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_a_record_knows_its_file_and_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    assert [record.location for record in read_records(path)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "got int"),
        (["a"], "got list"),
        ({}, "expected {instruction"),
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


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
BLANK = st.sampled_from([None, "", " ", "\n\t"])
VALID = st.one_of(
    st.tuples(WORDS, WORDS | BLANK, WORDS).map(
        lambda t: (
            {"instruction": t[0], "input": t[1], "output": t[2]},
            [("user", f"{t[0]}\n\n{t[1]}" if (t[1] or "").strip() else t[0]), ("assistant", t[2])],
        )
    ),
    st.tuples(WORDS, WORDS).map(
        lambda t: ({"prompt": t[0], "completion": t[1]}, [("user", t[0]), ("assistant", t[1])])
    ),
    WORDS.map(lambda t: ({"text": t}, [("text", t)])),
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), WORDS), max_size=3).flatmap(
        lambda turns: WORDS.map(
            lambda last: (
                {"messages": [{"role": r, "content": c} for r, c in [*turns, ("assistant", last)]]},
                [*turns, ("assistant", last)],
            )
        )
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALID, min_size=1, max_size=5), st.booleans(), st.sampled_from([".jsonl", ".json"]))
def test_valid_records_come_back_as_they_were_written(pairs, plain, ending):
    values = [{**value, "id": 7} for value, _ in pairs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train{ending}"
        lines = "\n".join(json.dumps(value, ensure_ascii=plain) for value in values)
        path.write_text(lines if ending == ".jsonl" else json.dumps(values, ensure_ascii=plain), encoding="utf-8")
        records = read_records(path)
    assert [[(turn.role, turn.content) for turn in record] for record in records] == [turns for _, turns in pairs]


def line_problem(line):
    """Whether a line of JSONL is neither blank nor a record, worked out for the line alone."""
    try:
        text = line.decode()
        if text.strip():
            parse_record(json.loads(text))
    except (ValueError, RecursionError):
        return True
    return False


LINE = st.one_of(
    VALID.map(lambda pair: json.dumps(pair[0]).encode()),
    st.sampled_from([b"", b"  ", b"{", b'{"text": NaN}', b'{"text": "a"}{}', b'{"text": "\\ud800"}', b"\0"]),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(str.encode),
    st.tuples(VALID, st.integers(0, 60), st.sampled_from(b'"{}[]:,\\x0')).map(
        lambda t: flipped(json.dumps(t[0][0]).encode(), t[1], t[2])
    ),
)


def flipped(line, place, byte):
    return line[: place % len(line)] + bytes([byte]) + line[place % len(line) + 1 :]


@settings(max_examples=200, deadline=None)
@given(st.lists(LINE, max_size=6))
def test_the_first_bad_line_is_named_by_file_and_number_or_there_is_none(lines):
    bad = [number for number, line in enumerate(lines, start=1) if line_problem(line)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        path.write_bytes(b"\n".join(lines))
        try:
            outcome = len(read_records(path))
        except InputError as error:
            outcome = str(error)
    if bad:
        assert outcome.startswith(f"{path}:{bad[0]}: ")
        assert "\n" not in outcome
        return
    count = sum(bool(line.decode().strip()) for line in lines)
    assert outcome == count if count else outcome.startswith(f"{path}: no records")


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
@pytest.mark.parametrize("depths", [range(800, 1000, 7), [3000], [100_000]])
def test_values_nested_to_any_depth_are_refused(tmp_path, ending, depths):
    path = tmp_path / f"train{ending}"
    for depth in depths:  # what the JSON reader still takes may be too deep for whoever shows the value
        record = '{"text": ' + "[" * depth + "]" * depth + "}"
        path.write_text(record if ending == ".jsonl" else f"[{record}]")
        with pytest.raises(InputError) as caught:
            read_records(path)
        assert str(caught.value).startswith(str(path))


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
    "line",
    [
        '{"text": ',
        '{"txt": "a"}',
        "[1]",
        '{"text": ""}',
        "[" * 100_000,
        '{"text": ' + "9" * 5000 + "}",
        '{"text": "a", "text": "b"}',
        '{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
    ],
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
    with pytest.raises(InputError, match="expected a list"):
        read_records(path)


def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(InputError, match="byte 10"):
        read_records(path)


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
