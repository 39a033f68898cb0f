"""What the server does with clients that send what is not right."""

import dataclasses

import numpy as np
import pytest

from fl_lightning.privacy.secure_aggregation.client import SecureClient
from fl_lightning.privacy.secure_aggregation.messages import KeyShares, UnmaskShares
from fl_lightning.privacy.secure_aggregation.randomness import seeded_random
from fl_lightning.privacy.secure_aggregation.server import SecureServer
from fl_lightning.privacy.secure_aggregation.session import simulated_members
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms

NAMES = ["hr/a", "hr/b", "hr/c", "hr/d"]
TERMS = Terms("run", "hr", 1, invited=4, size=2)


@pytest.fixture
def parties():
    members = simulated_members(NAMES, 7)
    clients = {name: SecureClient(members[name], TERMS, seeded_random(1, name)) for name in NAMES}
    return SecureServer(TERMS, members["hr/a"].roster), clients


def play(server, clients, change=lambda step, client, message: message):
    """A round in which some messages are changed on their way to the server; clients without a reply are silent."""
    for name, client in clients.items():
        server.receive_keys(name, change("keys", name, client.advertise()))
    keys = server.advertisements()
    clients = {name: client for name, client in clients.items() if name in keys}
    for name, client in clients.items():
        server.receive_shares(name, change("shares", name, client.share_keys(keys)))
    clients = {name: client for name, client in clients.items() if name in server._shares}
    for name, client in clients.items():
        masked = client.masked_input(server.shares_for(name), np.array([0.5, -0.5]), 10)
        server.receive_input(name, change("input", name, masked))
    survivors = server.survivors()
    clients = {name: client for name, client in clients.items() if name in survivors}
    for name, client in clients.items():
        server.receive_signature(name, change("signature", name, client.sign_survivors(survivors)))
    for name, client in clients.items():
        server.receive_unmask(name, change("unmask", name, client.unmask(server.request_for(name))))
    return survivors, server.result()


def only(step, changed):
    return lambda s, client, message: changed(message) if (s, client) == (step, "hr/b") else message


@pytest.mark.parametrize(
    ("step", "changed"),
    [
        ("keys", lambda m: dataclasses.replace(m, signature=bytes(64))),
        ("shares", lambda m: KeyShares({}, m.seed_digest)),
        ("input", lambda m: m[:-1]),
    ],
)
def test_a_bad_message_counts_as_none(parties, step, changed):
    survivors, total = play(*parties, only(step, changed))
    assert survivors == ["hr/a", "hr/c", "hr/d"]
    assert total[-1] == 30


def test_a_bad_signature_is_not_passed_on(parties):
    survivors, total = play(*parties, only("signature", lambda m: bytes(64)))
    assert survivors == NAMES
    assert total[-1] == 40


def wrong_shares(message):
    return UnmaskShares({name: bytes(32) for name in message.seeds}, message.keys)


def test_a_client_with_wrong_shares_changes_nothing(parties):
    survivors, total = play(*parties, only("unmask", wrong_shares))
    assert survivors == NAMES
    assert total[-1] == 40


def test_too_many_wrong_shares_are_noticed(parties):
    def two(step, client, message):
        return wrong_shares(message) if step == "unmask" and client in ("hr/a", "hr/b") else message

    with pytest.raises(SecureAggregationError, match="mask of hr/a stays: its owner, or holders"):
        play(*parties, two)


def test_shares_that_are_missing_fail_the_round(parties):
    def silent(step, client, message):
        return UnmaskShares({}, {}) if step == "unmask" and client in ("hr/a", "hr/b") else message

    with pytest.raises(SecureAggregationError, match=r"mask of hr/a stays: expected 3 shares of a secret, got 2"):
        play(*parties, silent)


def test_an_input_is_taken_once(parties):
    server, clients = parties
    for name, client in clients.items():
        server.receive_keys(name, client.advertise())
    keys = server.advertisements()
    for name, client in clients.items():
        server.receive_shares(name, client.share_keys(keys))
    masked = clients["hr/a"].masked_input(server.shares_for("hr/a"), np.zeros(2), 1)
    server.receive_input("hr/a", masked)
    before = server._total.copy()
    server.receive_input("hr/a", masked)
    np.testing.assert_array_equal(server._total, before)
