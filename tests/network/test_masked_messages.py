"""JSON forms of the messages of secure aggregation."""

import json

import pytest

from fl_lightning.network import masked_messages as messages
from fl_lightning.privacy.secure_aggregation.messages import Advertisement, KeyShares, UnmaskRequest, UnmaskShares


@pytest.mark.parametrize(
    ("message", "to_json", "from_json"),
    [
        (Advertisement(b"a" * 32, b"b" * 32, b"c" * 64), messages.keys_to_json, messages.keys_from_json),
        (KeyShares({"hr/a": b"\x00\xff"}, b"d" * 32), messages.shares_to_json, messages.shares_from_json),
        (
            UnmaskRequest(["hr/a", "hr/b"], ["hr/c"], {"hr/a": b"s" * 64}),
            messages.request_to_json,
            messages.request_from_json,
        ),
        (UnmaskShares({"hr/a": b"x"}, {"hr/c": b""}), messages.unmask_to_json, messages.unmask_from_json),
    ],
)
def test_messages_come_back_from_json(message, to_json, from_json):
    assert from_json(json.loads(json.dumps(to_json(message)))) == message


GARBAGE = [None, 3, "x", [], {"x": 1}, {"shares": {"a": 1}, "seed_digest": "00"}, {"survivors": "hr/a", "dropped": []}]


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("parse", ["keys", "shares", "request", "unmask"])
def test_anything_else_is_refused_with_a_reason(parse, value):
    with pytest.raises(ValueError, match="expected"):
        getattr(messages, f"{parse}_from_json")(value)


def test_what_is_longer_than_any_key_or_share_is_refused():
    with pytest.raises(ValueError, match="of at most 4096 bytes"):
        messages.bytes_from_json({"hr/a": "00" * 4097})
    with pytest.raises(ValueError, match="non-hexadecimal"):
        messages.bytes_from_json({"hr/a": "zz"})


@pytest.mark.parametrize("value", [0, -1, True, "1", 1.0, None, 2**53 + 1])
def test_numbers_are_positive_integers(value):
    with pytest.raises(ValueError, match="attempt: expected an integer from 1 to"):
        messages.count_from_json(value, "attempt")
    assert messages.count_from_json(3, "attempt") == 3
