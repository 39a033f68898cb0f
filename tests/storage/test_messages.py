import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_lightning.storage.messages import decode, encode


def test_states_come_back_as_they_were():
    states = [{"a": torch.randn(2, 3), "b": torch.arange(4)}, {"a": torch.zeros(0, 5)}, {}]
    header, got = decode(encode({"do": "fit", "round": 3}, states))
    assert header == {"do": "fit", "round": 3}
    assert [list(state) for state in got] == [["a", "b"], ["a"], []]
    for sent, back in zip(states, got, strict=True):
        assert all(
            torch.equal(tensor, back[name]) and tensor.dtype == back[name].dtype for name, tensor in sent.items()
        )


def test_a_tensor_that_states_share_is_sent_once():
    shared = torch.randn(1000)
    one, many = encode({}, [{"a": shared}]), encode({}, [{"a": shared}] * 50)
    assert len(many) < len(one) + 2000
    assert all(torch.equal(state["a"], shared) for state in decode(many)[1])


def test_views_and_overlapping_tensors_are_sent_whole():
    whole = torch.arange(12.0).view(3, 4)
    state = {"column": whole[:, 1], "row": whole[1], "transposed": whole.T, "whole": whole}
    got = decode(encode({}, [state]))[1][0]
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("cut", [0, 4, 8, 20])
def test_torn_message_is_refused(cut):
    message = encode({"do": "evaluate"}, [{"a": torch.ones(3)}])
    with pytest.raises(ValueError, match="expected a complete one"):
        decode(message[:cut])


def test_header_is_json_and_not_a_pickle():
    message = encode({"do": "stop"})
    length = int.from_bytes(message[:8], "little")
    assert json.loads(message[8 : 8 + length]) == {"header": {"do": "stop"}, "states": []}


def framed(head, tensors=b""):
    return len(head).to_bytes(8, "little") + head + tensors


NO_TENSORS = encode({})[8 + len(b'{"header": {}, "states": []}') :]
VALID = [
    encode({"do": "stop"}),
    encode({"do": "fit", "θ": [1, None, 0.5]}, [{"a": torch.ones(2, 3), "b": torch.arange(3)}, {"a": torch.zeros(0)}]),
]


def decoded_or_refused(message):
    """What a message says, or None where it is refused; anything else is an error."""
    try:
        header, states = decode(message)
    except ValueError:
        return None
    assert all(isinstance(n, str) and isinstance(t, torch.Tensor) for state in states for n, t in state.items())
    return header, states


@pytest.mark.parametrize("head", [b"", b"\xff\xfe", b"{", b"9" * 5000, b'{"header": 1, "states": []', b"'"])
def test_a_header_that_is_no_json_is_a_value_error(head):
    with pytest.raises(ValueError):
        decode(framed(head, NO_TENSORS))


@pytest.mark.parametrize(
    "head",
    [
        b"{}",
        b"null",
        b"[]",
        b'{"header": 1}',
        b'{"states": []}',
        b'{"header": 1, "states": 3}',
        b'{"header": 1, "states": null}',
        b'{"header": 1, "states": [[]]}',
        b'{"header": 1, "states": ["ab"]}',
        b'{"header": 1, "states": [{"a": "0"}]}',
        b'{"header": 1, "states": [{"a": [0]}]}',
        b"[" * 100_000,
    ],
    ids=lambda head: head[:40].decode(),
)
def test_json_that_is_no_header_is_a_value_error(head):
    with pytest.raises(ValueError):
        decode(framed(head, NO_TENSORS))


@pytest.mark.parametrize(
    "part", [b"", NO_TENSORS[:-1], NO_TENSORS + b"x", b"\xff" * 8, b"\xff" * 7 + b"\0" + NO_TENSORS]
)
def test_tensors_that_are_not_whole_are_a_value_error(part):
    with pytest.raises(ValueError):
        decode(framed(b'{"header": 1, "states": []}', part))


@pytest.mark.parametrize("missing", [1, 4, 40, 80, 150])
def test_a_message_without_its_end_is_a_value_error(missing):
    with pytest.raises(ValueError):
        decode(VALID[1][:-missing])


@settings(max_examples=200, deadline=None, report_multiple_bugs=False)
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda head: framed(head, NO_TENSORS)))
@example(b"")
def test_any_bytes_are_a_message_or_a_value_error(message):
    decoded_or_refused(message)


@settings(max_examples=300, deadline=None, report_multiple_bugs=False)
@given(
    st.sampled_from(VALID),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3
    ),
)
def test_a_message_with_changed_bytes_is_a_message_or_a_value_error(message, changes):
    for share, new, dropped in changes:
        place = int(share * len(message))
        message = message[:place] + new + message[place + dropped :]
    decoded_or_refused(message)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.lists(st.dictionaries(st.text(max_size=6), st.lists(st.floats(width=32), max_size=3), max_size=3), max_size=3),
)
def test_any_header_and_states_come_back(header, values):
    states = [{name: torch.tensor(numbers) for name, numbers in state.items()} for state in values]
    got, back = decode(encode(header, states))
    assert got == header
    assert [list(state) for state in back] == [list(state) for state in states]
    for sent, received in zip(states, back, strict=True):
        for name, tensor in sent.items():
            assert received[name].view(torch.int32).equal(tensor.view(torch.int32))
