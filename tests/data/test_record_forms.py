"""Every form of a record that people bring, after the logic of public data sets: its turns, or why it is refused."""

import json
import math

import pytest

from fl_lightning.data.record_files import scan_records
from fl_lightning.data.record_forms import parse_record
from fl_lightning.data.records import Turn
from fl_lightning.errors import InputError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def turns(*pairs):
    return [Turn(role, content) for role, content in pairs]


def sharegpt(*pairs):
    return {"conversations": [{"from": name, "value": text} for name, text in pairs]}


def unlearned(role, content):
    return Turn(role, content, weight=False)


FORMS = {
    "prompt and completion as messages": (
        {"prompt": [USER], "completion": [ASSISTANT]},
        [unlearned("user", "q"), Turn("assistant", "a")],
    ),
    "an answer in the prompt is not learned": (
        {"prompt": [USER, ASSISTANT, USER], "completion": "b"},
        [unlearned("user", "q"), unlearned("assistant", "a"), unlearned("user", "q"), Turn("assistant", "b")],
    ),
    "ShareGPT": (
        sharegpt(("system", "s"), ("human", "q"), ("gpt", "a")),
        turns(("system", "s"), ("user", "q"), ("assistant", "a")),
    ),
    "ShareGPT with a system key": (
        {**sharegpt(("human", "q"), ("gpt", "a")), "system": "s", "tools": "[]"},
        turns(("system", "s"), ("user", "q"), ("assistant", "a")),
    ),
    "ShareGPT in which the agent speaks first": (
        sharegpt(("gpt", "hello"), ("human", "q"), ("gpt", "a")),
        turns(("assistant", "hello"), ("user", "q"), ("assistant", "a")),
    ),
    "ShareGPT with a call": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "UTC"}}'},
                {"from": "observation", "value": "noon"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [Turn("user", "q"), Turn("assistant", "", (CALL,)), Turn("tool", "noon"), Turn("assistant", "a")],
    ),
    "roles of ShareGPT under OpenAI's keys": (
        {"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]},
        turns(("user", "q"), ("assistant", "a")),
    ),
    "OpenAI with a call": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
                    ],
                },
                {"role": "tool", "content": "", "tool_call_id": "c1", "name": "now"},
                ASSISTANT,
            ],
            "parallel_tool_calls": False,
        },
        [
            Turn("user", "q"),
            Turn("assistant", "", ({"type": "function", "id": "c1", "function": CALL["function"]},)),
            Turn("tool", "", name="now", tool_call_id="c1"),
            Turn("assistant", "a"),
        ],
    ),
    "OpenAI's old call": (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "now", "arguments": '{"zone": "UTC"}'}}]},
        [Turn("user", "q"), Turn("assistant", "", (CALL,))],
    ),
    "text parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "qr"]}, ASSISTANT]},
        turns(("user", "qr"), ("assistant", "a")),
    ),
    "text parts of a table, with empty columns": (
        {"messages": [{**USER, "content": [{"type": "text", "text": "q", "image": None}], "name": None}, ASSISTANT]},
        turns(("user", "q"), ("assistant", "a")),
    ),
    "weights": (
        {"messages": [USER, {**ASSISTANT, "weight": 0}, {**USER, "weight": None}, {**ASSISTANT, "weight": 1.0}]},
        [Turn("user", "q"), unlearned("assistant", "a"), Turn("user", "q"), Turn("assistant", "a")],
    ),
    "developer": (
        {"messages": [{"role": "developer", "content": "d"}, USER, ASSISTANT]},
        turns(("developer", "d"), ("user", "q"), ("assistant", "a")),
    ),
    "Alpaca with system and history": (
        {"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["q0", "a0"], ["q1", "a1"]]},
        turns(
            ("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q1"), ("assistant", "a1"),
            ("user", "q\n\nx"), ("assistant", "a"),
        ),
    ),
    "Alpaca with empty system and history": (
        {"instruction": "q", "input": "", "output": "a", "system": "", "history": []},
        turns(("user", "q"), ("assistant", "a")),
    ),
    "prompt and completion beside empty columns of other forms": (
        {"messages": None, "conversations": [], "instruction": "", "output": None, "prompt": "q", "completion": "a"},
        turns(("user", "q"), ("assistant", "a")),
    ),
    "messages with empty columns of ShareGPT": (
        {"messages": [{**USER, "from": None, "value": ""}, {"role": None, "from": "gpt", "value": "a"}]},
        turns(("user", "q"), ("assistant", "a")),
    ),
    "text beside empty columns of other forms": (
        {"prompt": None, "completion": None, "messages": None, "text": "t"},
        turns(("text", "t")),
    ),
    "prompt and completion with system": (
        {"prompt": "q", "completion": "a", "system": "s"},
        turns(("system", "s"), ("user", "q"), ("assistant", "a")),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), FORMS.values(), ids=FORMS)
def test_a_form_of_a_record_has_its_turns(value, expected):
    record = parse_record(json.loads(json.dumps(value)))
    assert record == expected
    assert record.unread_keys == []


@pytest.mark.parametrize("tools", [{"tools": [TOOL]}, {"tools": json.dumps([TOOL])}, {"functions": [TOOL["function"]]}])
def test_tools_are_kept_as_schemas(tools):
    assert parse_record({"messages": [USER, ASSISTANT], **tools}).tools == [TOOL]
    assert parse_record({"prompt": "q", "completion": "a", **tools}).tools == [TOOL]


def messages(**more):
    return {"messages": [USER, {**ASSISTANT, **more}]}


REFUSED = {
    "DPO": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen and rejected: expected one response"),
    "DPO beside a completion": ({"prompt": "q", "completion": "a", "rejected": "b"}, "rejected: expected one response"),
    "KTO": ({"prompt": "q", "completion": "a", "label": False}, "key 'label'"),
    "scores": ({"prompt": "q", "completion": "a", "chosenScore": 0.1}, "key 'chosenScore'"),
    "a rating": ({"prompt": "q", "completion": "a", "rating": 1}, "key 'rating'"),
    "a weight of the record": ({"prompt": "q", "completion": "a", "weight": 0}, "key 'weight'"),
    "a context": ({"instruction": "q", "output": "a", "context": "c"}, "key 'context'"),
    "images": ({**messages(), "images": ["x.png"]}, "key 'images'"),
    "history of chats": ({**messages(), "chat_history": [["a", "b"]]}, "key 'chat_history'"),
    "system of a text": ({"text": "a", "system": "s"}, "key 'system'"),
    "tools of a text": ({"text": "a", "tools": [TOOL]}, "key 'tools'"),
    "two forms": ({"prompt": "q", "completion": "a", "text": "something else"}, "expected one form of a record"),
    "two conversations": ({**messages(), "conversations": [{"from": "gpt", "value": "b"}]}, "expected one form"),
    "an approval": ({"prompt": "q", "completion": "a", "accepted": False}, "key 'accepted'"),
    "two contents": ({"messages": [USER, {**ASSISTANT, "value": "b"}]}, "message 1: 'content' and 'value'"),
    "two roles": ({"messages": [USER, {**ASSISTANT, "from": "human"}]}, "message 1: 'role' and 'from': expected one"),
    "two kinds of calls": (
        messages(tool_calls=[CALL], function_call={"name": "then", "arguments": {}}),
        "message 1: 'tool_calls' and 'function_call': expected one",
    ),
    "two lists of tools": ({**messages(), "tools": [TOOL], "functions": [{"name": "then"}]}, "'tools' and 'functions'"),
    "a call with NaN": (messages(tool_calls=[{"function": {"name": "f", "arguments": {"x": math.nan}}}]), "no NaN"),
    "an input that is a number": ({"instruction": "Double it", "input": 0, "output": "0"}, "'input': expected text"),
    "a system that is no text": ({"prompt": "q", "completion": "a", "system": False}, "'system': expected text"),
    "history that is a number": ({"prompt": "q", "completion": "a", "history": 0}, "'history': expected a list"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT]},
        "message 0: 'content': expected parts of the type text, got 'image_url'",
    ),
    "an audio in a text part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "audio": "x"}]}, ASSISTANT]},
        "message 0: key 'audio'",
    ),
    "half a weight": (messages(weight=0.5), "message 1: 'weight': expected 0 (not learned) or 1, got 0.5"),
    "a weight of text": (messages(weight="0"), "message 1: 'weight'"),
    "nothing with weight": (messages(weight=0), "without weight 0"),
    "another weight": (messages(train=False), "message 1: key 'train'"),
    "a mask": (messages(loss_mask=0), "message 1: key 'loss_mask'"),
    "thoughts": (messages(reasoning_content="hm"), "message 1: key 'reasoning_content'"),
    "an unknown role": ({"messages": [USER, {"role": "robot", "content": "a"}]}, "message 1: expected an object"),
    "a user who calls": ({"messages": [{**USER, "tool_calls": [CALL]}, ASSISTANT]}, "'tool_calls': expected the role"),
    "a call without a name": (messages(tool_calls=[{"function": {"arguments": {}}}]), "'tool_calls': expected a list"),
    "a call with text": (messages(tool_calls=[{"function": {"name": "f", "arguments": "x"}}]), "'arguments': expected"),
    "a call that is no JSON": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "now()"}]},
        "message 1: 'value': expected JSON",
    ),
    "tools that are none": ({**messages(), "tools": ["now"]}, "'tools': expected a list"),
    "history that is none": ({"instruction": "q", "output": "a", "history": ["q", "a"]}, "'history': expected a list"),
    "history with half a pair": ({"instruction": "q", "output": "a", "history": [["q", 1]]}, "'history'"),
    "system twice": (
        {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT], "system": "t"},
        "'system': expected one system turn",
    ),
    "a completion without an answer": ({"prompt": [USER], "completion": [USER]}, "no response: 'completion'"),
    "history beside messages": (
        {"prompt": [USER], "completion": "a", "history": [["x", "y"]]},
        "'history': expected earlier turns",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_with_its_key_and_line(tmp_path, value, message):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a"}\n\n' + json.dumps(value) + "\n")
    (_, fine), (_, error) = scan_records(path)
    assert [turn.content for turn in fine] == ["a"]
    assert isinstance(error, InputError)
    assert str(error).startswith(f"{path}:3: ")
    assert message in str(error)
    assert "\n" not in str(error)


UNREAD = {
    "identifiers": ({"prompt": "q", "completion": "a", "id": 7, "document_id": "x"}, ["id", "document_id"]),
    "a web page": ({"text": "a", "url": "u", "language_score": 0.9}, ["url", "language_score"]),
    "empty columns": ({"prompt": "q", "completion": "a", "label": None, "rejected": "", "images": []}, []),
    "Alpaca's rendered text": ({"instruction": "q1", "input": "", "output": "a1", "text": "### q1\n### a1"}, ["text"]),
    "the first prompt again": ({"prompt": "q", "prompt_id": "x", **messages()}, ["prompt", "prompt_id"]),
    "keys of messages": ({"messages": [{**USER, "id": 1}, {**ASSISTANT, "id": 2}]}, ["messages.id"]),
    "a category": ({"instruction": "q", "output": "a", "category": "qa", "source": {"u": 1}}, ["category", "source"]),
}  # fmt: skip


@pytest.mark.parametrize(("value", "keys"), UNREAD.values(), ids=UNREAD)
def test_keys_that_change_nothing_are_kept_by_name(value, keys):
    assert parse_record(value).unread_keys == keys
