import json

import pytest
import torch

from fl_lightning.messages import decode, encode


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
    with pytest.raises(ValueError, match="wanted a whole one"):
        decode(message[:cut])


def test_header_is_json_and_not_a_pickle():
    message = encode({"do": "stop"})
    length = int.from_bytes(message[:8], "little")
    assert json.loads(message[8 : 8 + length]) == {"header": {"do": "stop"}, "states": []}
