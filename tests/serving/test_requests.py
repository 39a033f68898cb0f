"""What a chat request may be, and what is said of one that it may not be."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data.records import Turn

pytest.importorskip("pydantic", reason="pydantic is not installed: pip install 'fl_lightning[serve]'")

from fl_lightning.serving import requests
from fl_lightning.serving.requests import MAX_MESSAGES, ApiError, ChatRequest, CompletionRequest, unknown_model

USER = {"role": "user", "content": "Hello"}
quick = settings(deadline=None, max_examples=150)


def read_request(content):
    return requests.read_request(ChatRequest, content)


def body(**keys):
    return json.dumps({"model": "hr", "messages": [USER], **keys}).encode()


def refused(content):
    with pytest.raises(ApiError) as caught:
        read_request(content)
    assert caught.value.status == 400
    return caught.value.body()["error"]


def said(*contents, role="user"):
    return body(messages=[{"role": role, "content": content} for content in contents])


def test_what_is_left_out_is_what_openai_takes_for_it():
    asked = read_request(body())
    assert (asked.model, asked.turns, asked.n, asked.stream, asked.stops) == (
        "hr", [Turn("user", "Hello")], 1, False, [],
    )  # fmt: skip
    assert (asked.temperature, asked.top_p, asked.presence_penalty, asked.frequency_penalty) == (1, 1, 0, 0)
    assert (asked.seed, asked.max_tokens, asked.max_completion_tokens) == (None, None, None)


def test_everything_that_is_given_is_taken():
    asked = read_request(
        body(
            temperature=0.5, top_p=0.25, n=8, max_tokens=7, max_completion_tokens=9, stop=["a", "b"], stream=True,
            stream_options={"include_usage": True}, seed=3, presence_penalty=-2, frequency_penalty=2,
        )
    )  # fmt: skip
    assert (asked.n, asked.max_tokens, asked.max_completion_tokens, asked.stops) == (8, 7, 9, ["a", "b"])
    assert (asked.stream, asked.stream_options.include_usage) == (True, True)
    how = asked.sampling(2, seed=99)
    assert (how.temperature, how.top_p, how.presence_penalty, how.frequency_penalty) == (0.5, 0.25, -2, 2)
    assert how.seed == 5  # its own 3, and 2 for the third choice


def test_choices_without_a_seed_have_draws_of_their_own():
    assert [read_request(body()).sampling(i, seed=10).seed for i in range(2)] == [10, 11]


@pytest.mark.parametrize("seed", [-1, 2**63, 10**40])
def test_any_whole_number_is_a_seed_that_torch_takes(seed):
    from fl_lightning.modeling.generation.token_sampling import Sampler

    how = read_request(body(seed=seed)).sampling(0, seed=0)
    assert how.seed == seed % 2**63
    Sampler(how)


def test_nulls_count_as_left_out_at_every_level():
    keys = ("temperature", "top_p", "n", "max_tokens", "stop", "stream", "seed", "tools", "logprobs", "stream_options")
    assert read_request(body(**dict.fromkeys(keys))) == read_request(body())
    assert not read_request(body(stream_options={"include_usage": None})).stream_options.include_usage
    assert read_request(body(messages=[{**USER, "name": None, "refusal": None}])).turns == [Turn("user", "Hello")]


def test_keys_without_influence_on_an_answer_are_accepted():
    keys = {"user": "x", "store": True, "metadata": {"a": 1}, "service_tier": "auto"}
    assert read_request(body(**keys)) == read_request(body())
    echoed = {**USER, "refusal": None, "annotations": []}
    assert read_request(body(messages=[echoed])).turns == [Turn("user", "Hello")]


def test_earlier_tool_calls_and_their_results_are_turns():
    call = {"id": "c1", "type": "function", "function": {"name": "due", "arguments": '{"day": "Friday"}'}}
    asked = read_request(
        body(
            messages=[
                USER,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "two invoices"},
            ]
        )
    )
    read = {"id": "c1", "type": "function", "function": {"name": "due", "arguments": {"day": "Friday"}}}
    assert asked.turns[1:] == [
        Turn("assistant", "", (read,)),
        Turn("tool", "two invoices", tool_call_id="c1"),
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"function": {"name": "due", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "due", "arguments": "[]"}}]},
        {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]},
        {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "due", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1"},
    ],
)
def test_a_tool_call_that_cannot_be_read_is_refused(message):
    error = refused(body(messages=[USER, message, USER]))
    assert error["param"].startswith("messages.1")


@pytest.mark.parametrize("key", ["top_k", "repetition_penalty", "reasoning_effort", "__class__", "model_config"])
def test_a_key_that_is_not_understood_is_refused(key):
    error = refused(body(**{key: 1}))
    assert (error["code"], error["param"]) == ("unsupported_parameter", key)
    assert error["message"].startswith(f"{key}: unknown key")


def test_a_misspelled_key_is_refused_with_the_right_one():
    assert "did you mean 'temperature'" in refused(body(temperatur=0))["message"]
    where = refused(body(messages=[{**USER, "weight": 0}]))
    assert where["param"] == "messages.0.weight"


def test_biases_of_tokens_reach_the_sampler_in_order():
    how = read_request(body(logit_bias={"9": -100, "3": 2.5, "5": 0})).sampling(0, seed=0)
    assert how.logit_bias == ((3, 2.5), (9, -100.0))


def complete(**keys):
    return requests.read_request(CompletionRequest, json.dumps({"model": "hr", **keys}).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("Hi", ["Hi"]), (["Hi", "Why"], ["Hi", "Why"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])],
)
def test_a_prompt_is_text_or_tokens_or_several_of_them(prompt, prompts):
    assert complete(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["Hi", ""], [-1], None, {"a": 1}])
def test_a_prompt_of_nothing_is_refused(prompt):
    with pytest.raises(ApiError, match=r"^prompt"):
        complete(prompt=prompt)


def test_an_echo_is_refused_and_a_chat_has_no_prompt():
    assert complete(prompt="Hi", echo=False).prompts == ["Hi"]
    with pytest.raises(ApiError, match="echo: not supported"):
        complete(prompt="Hi", echo=True)
    with pytest.raises(ApiError, match="messages: unknown key"):
        complete(prompt="Hi", messages=[USER])


def test_a_developer_keeps_the_role_and_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]
    asked = read_request(body(messages=[{"role": "developer", "content": parts}, USER]))
    assert asked.turns == [Turn("developer", "Be short."), Turn("user", "Hello")]


def test_one_stop_is_a_list_of_one():
    assert read_request(body(stop="###")).stops == ["###"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"model": "\\ud800"}', "an unpaired surrogate"),
        (b'{"\\udfff": 1}', "an unpaired surrogate"),
    ],
)
def test_a_body_that_is_no_json_is_refused(content, said):
    error = refused(content)
    assert said in error["message"]
    assert (error["code"], error["param"]) == ("invalid_json", None)


@pytest.mark.parametrize("content", [b"[]", b"1", b"null", b'"text"', b"NaN"])
def test_a_body_that_is_no_object_is_refused(content):
    error = refused(content)
    assert (error["code"], error["param"]) == ("invalid_value", "body")


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": ["hr"]}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [None]}, "messages.0"),
        ({"messages": [USER, "Hello"]}, "messages.1"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "User", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "text", "content": "x"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "messages.0.content"),
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 10**50}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a" * 257]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": "maybe"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 7}}, "stream_options.include_usage"),
        ({"seed": 1.5}, "seed"),
        ({"seed": float("inf")}, "seed"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": float("nan")}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(keys, where):
    error = refused(body(**keys))
    assert error["code"] == "invalid_value"
    assert error["param"] == where or error["param"].startswith(f"{where}.")
    assert error["message"].startswith(f"{error['param']}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tools", "x"),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("top_logprobs", 3),
        ("modalities", ["audio"]),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": ["text"]}),
        ("response_format", "json"),
    ],
)
def test_what_is_not_supported_is_said_rather_than_passed_over(key, value):
    error = refused(body(**{key: value}))
    assert (error["code"], error["param"]) == ("unsupported_parameter", key)


@pytest.mark.parametrize(
    ("key", "value"), [("tools", []), ("logprobs", False), ("response_format", {"type": "text"}), ("functions", [])]
)
def test_what_asks_for_nothing_special_is_taken(key, value):
    assert read_request(body(**{key: value})).turns == read_request(body()).turns == [Turn("user", "Hello")]


def test_an_error_is_in_the_form_that_clients_know():
    assert ApiError(400, "why", param="n", code="c").body() == {
        "error": {"message": "why", "type": "invalid_request_error", "param": "n", "code": "c"}
    }
    assert ApiError(500, "why").body()["error"]["type"] == "server_error"
    assert ApiError(400, "why").headers == {}
    assert ApiError(429, "why", retry_after=1).headers == {"Retry-After": "1"}


def test_an_unknown_model_is_answered_with_the_names_there_are():
    error = unknown_model("finanse", ["hr", "finance"])
    assert error.status == 404
    assert error.body()["error"]["code"] == "model_not_found"
    assert str(error) == "model 'finanse' is not served; did you mean 'finance'?; expected one of hr, finance"


def test_of_many_models_forty_are_named_and_a_long_name_is_cut():
    message = str(unknown_model("x" * 5000, [f"d{i}" for i in range(42)]))
    assert message.endswith("d38, d39 and 2 more")
    assert message.startswith(f"model '{'x' * 100}' is not served; expected")
    assert str(unknown_model("x", [f"d{i}" for i in range(40)])).endswith("d38, d39")


def read_or_refused(content):
    try:
        asked = read_request(content)
    except ApiError as error:
        return error.status == 400 and bool(json.dumps(error.body()).encode())
    for turn in asked.turns:
        turn.content.encode()
    return isinstance(asked, ChatRequest) and 0 <= asked.sampling(0, 0).seed < 2**63


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted(ChatRequest.model_fields)


@quick
@given(st.binary(max_size=200))
def test_of_any_bytes_comes_a_request_or_a_refusal(content):
    assert read_or_refused(content)


@quick
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_of_any_values_comes_a_request_or_a_refusal(keys):
    assert read_or_refused(body(**keys))


@quick
@given(st.dictionaries(st.sampled_from(["role", "content"]), JSON | st.sampled_from(["user", "system"])))
def test_of_any_message_comes_a_request_or_a_refusal(message):
    assert read_or_refused(body(messages=[message, USER]))


def test_a_picture_is_refused_in_words():
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    body = json.dumps({"model": "hr", "messages": [{"role": "user", "content": parts}]}).encode()
    with pytest.raises(ApiError, match="content: .*expected parts of type 'text', got 'image_url'"):
        read_request(body)
