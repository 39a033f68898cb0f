"""What a server that does not follow the protocol asks for, and the clients that refuse it."""

import dataclasses

import numpy as np
import pytest

from fl_lightning.privacy.secure_aggregation import agreement
from fl_lightning.privacy.secure_aggregation.client import SecureClient, advertised_text, survivors_text
from fl_lightning.privacy.secure_aggregation.messages import Advertisement
from fl_lightning.privacy.secure_aggregation.participant import Participant
from fl_lightning.privacy.secure_aggregation.randomness import seeded_random
from fl_lightning.privacy.secure_aggregation.server import SecureServer
from fl_lightning.privacy.secure_aggregation.session import simulated_members
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms

NAMES = [f"hr/{letter}" for letter in "abcdefg"]
TERMS = Terms("run", "hr", 1, invited=7, size=3)


class Round:
    """Seven honest clients (5 shares restore a secret), and a server that a test may replace message by message."""

    def __init__(self, members=None, terms=TERMS):
        self.members = members or simulated_members(NAMES, 7)
        self.server = SecureServer(terms, self.members["hr/a"].roster)
        random = {name: seeded_random(1, name, terms.round_num) for name in NAMES}
        self.clients = {name: SecureClient(self.members[name], terms, random[name]) for name in NAMES}

    def keys(self):
        for name, client in self.clients.items():
            self.server.receive_keys(name, client.advertise())
        return self.server.advertisements()

    def shares(self):
        keys = self.keys()
        for name, client in self.clients.items():
            self.server.receive_shares(name, client.share_keys(keys))

    def inputs(self, names=NAMES):
        self.shares()
        for name in names:
            masked = self.clients[name].masked_input(self.server.shares_for(name), np.zeros(3), 1)
            self.server.receive_input(name, masked)

    def signatures(self, names=NAMES):
        self.inputs(names)
        survivors = self.server.survivors()
        for name in names:
            self.server.receive_signature(name, self.clients[name].sign_survivors(survivors))


def refusal(reason):
    return pytest.raises(SecureAggregationError, match=f"hr/a refuses: .*{reason}")


def test_an_honest_one_is_not_refused():
    play = Round()
    play.signatures(NAMES[:6])
    for name in NAMES[:6]:
        play.server.receive_unmask(name, play.clients[name].unmask(play.server.request_for(name)))
    assert play.server.result().tolist() == [0, 0, 0, 6]


def test_swaps_the_key_of_another_client():
    play = Round()
    keys = play.keys()
    swapped = dataclasses.replace(keys["hr/b"], mask_key=agreement.public_key(b"s" * 32))
    with refusal("the keys of hr/b are not signed by hr/b for this round"):
        play.clients["hr/a"].share_keys({**keys, "hr/b": swapped})


def test_signs_its_own_keys_with_another_identity():
    play = Round()
    keys = play.keys()
    forged = Advertisement(agreement.public_key(b"m" * 32), agreement.public_key(b"s" * 32), b"")
    forged = dataclasses.replace(
        forged, signature=agreement.sign(b"server" + bytes(26), advertised_text(TERMS, "hr/b", forged))
    )
    with refusal("the keys of hr/b are not signed"):
        play.clients["hr/a"].share_keys({**keys, "hr/b": forged})


def test_gives_out_other_keys_for_the_client_itself():
    play = Round()
    keys = play.keys()
    with refusal("different keys for this client"):
        play.clients["hr/a"].share_keys({name: key for name, key in keys.items() if name != "hr/a"})


def test_brings_a_client_that_nobody_knows():
    play = Round(terms=dataclasses.replace(TERMS, invited=8))
    keys = play.keys()
    with refusal("hr/sybil is not in the roster"):
        play.clients["hr/a"].share_keys({**keys, "hr/sybil": keys["hr/b"]})


def test_replays_the_keys_of_an_old_round():
    members = simulated_members(NAMES, 7)
    old = Round(members).keys()
    play = Round(members, dataclasses.replace(TERMS, round_num=2))
    keys = play.keys()
    with refusal("the keys of hr/b are not signed by hr/b for this round"):
        play.clients["hr/a"].share_keys({**keys, "hr/b": old["hr/b"]})


def test_plays_an_old_round_again():
    members = simulated_members(NAMES, 7)
    Round(members)
    with refusal("expected a round after 1, got 1"):
        Round(members)


def test_gives_one_client_the_keys_of_another():
    play = Round()
    keys = play.keys()
    with refusal("not signed by hr/c"):
        play.clients["hr/a"].share_keys({**keys, "hr/c": keys["hr/b"]})


def test_shows_too_few_clients():
    play = Round()
    keys = play.keys()
    with refusal("expected the keys of 5 to 7 clients, got 3"):
        play.clients["hr/a"].share_keys({name: keys[name] for name in NAMES[:3]})


def test_proposes_terms_below_the_limits_of_the_client():
    members = simulated_members(NAMES, 7, min_clients=4)
    with refusal("expected sums of at least 4 clients, got 3"):
        SecureClient(members["hr/a"], TERMS)
    with refusal("expected a threshold of at least 0.667, got 0.5"):
        SecureClient(members["hr/a"], dataclasses.replace(TERMS, min_clients=4, threshold=0.5))


def test_changes_shares_or_passes_on_those_for_another():
    for tamper in (
        lambda shares, of_b: {**shares, "hr/b": shares["hr/b"][:-1] + bytes([shares["hr/b"][-1] ^ 1])},
        lambda shares, of_b: {**shares, "hr/c": of_b["hr/c"]},
        lambda shares, of_b: {**shares, "hr/b": b""},
    ):
        play = Round()
        play.shares()
        sent = tamper(play.server.shares_for("hr/a"), play.server.shares_for("hr/b"))
        with refusal("changed on its way, or is not for this client and round"):
            play.clients["hr/a"].masked_input(sent, np.zeros(3), 1)


def test_keeps_the_shares_of_most_back():
    play = Round()
    play.shares()
    shares = play.server.shares_for("hr/a")
    with refusal("expected shares of 5 clients, its own among them, got 3"):
        play.clients["hr/a"].masked_input({name: shares[name] for name in ("hr/b", "hr/c")}, np.zeros(3), 1)


def test_asks_for_both_secrets_of_one_client():
    play = Round()
    play.signatures()
    request = play.server.request_for("hr/a")
    with refusal("the server asks for both secrets of hr/b"):
        play.clients["hr/a"].unmask(dataclasses.replace(request, dropped=["hr/b"]))


def test_says_that_a_client_has_dropped_out_whose_input_has_been_signed():
    play = Round()
    play.signatures()
    request = play.server.request_for("hr/a")
    lie = dataclasses.replace(request, survivors=[n for n in NAMES if n != "hr/b"], dropped=["hr/b"])
    with refusal("other survivors than those that were signed"):
        play.clients["hr/a"].unmask(lie)


def test_tells_clients_different_survivors():
    """Half of them hear that g dropped out, half that it did not; so nobody reveals anything."""
    play = Round()
    play.inputs()
    without = NAMES[:6]
    for name in NAMES[:3]:
        play.server._signatures[name] = play.clients[name].sign_survivors(without)
    for name in NAMES[3:]:
        play.server._signatures[name] = play.clients[name].sign_survivors(NAMES)
    request = play.server.request_for("hr/a")
    with refusal(r"expected 5 signatures on the list of survivors, got 3"):
        play.clients["hr/a"].unmask(dataclasses.replace(request, survivors=without, dropped=["hr/g"]))
    with pytest.raises(SecureAggregationError, match="hr/d refuses: expected 5 signatures .*, got 4"):
        play.clients["hr/d"].unmask(play.server.request_for("hr/d"))


def test_forges_signatures():
    play = Round()
    play.signatures()
    forged = {name: agreement.sign(b"server" + bytes(26), survivors_text(TERMS, NAMES)) for name in NAMES}
    request = dataclasses.replace(play.server.request_for("hr/a"), signatures=forged)
    with refusal("got 0"):
        play.clients["hr/a"].unmask(request)


def test_asks_twice():
    play = Round()
    play.signatures()
    request = play.server.request_for("hr/a")
    play.clients["hr/a"].unmask(request)
    with refusal("expected the step end of this round, got unmask"):
        play.clients["hr/a"].unmask(request)


def test_asks_for_two_signatures():
    play = Round()
    play.signatures()
    with refusal("got sign_survivors"):
        play.clients["hr/a"].sign_survivors(NAMES[:6])


def test_asks_for_two_masked_inputs():
    play = Round()
    play.inputs()
    with refusal("got masked_input"):
        play.clients["hr/a"].masked_input(play.server.shares_for("hr/a"), np.zeros(3), 1)


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        (NAMES[:4], "expected a sum of at least 5 clients, got 4"),
        (NAMES[1:], "says that this client has dropped out"),
        ([*NAMES, "hr/x"], "different clients that have advertised keys"),
        ([*NAMES, "hr/b"], "different clients that have advertised keys"),
    ],
)
def test_sends_a_list_of_survivors_that_cannot_be(survivors, reason):
    play = Round()
    play.inputs()
    with refusal(reason):
        play.clients["hr/a"].sign_survivors(survivors)


def test_counts_a_client_that_has_sent_no_shares():
    play = Round()
    play.shares()
    shares = {name: text for name, text in play.server.shares_for("hr/a").items() if name != "hr/g"}
    play.clients["hr/a"].masked_input(shares, np.zeros(3), 1)
    with refusal("hr/g has sent no shares and cannot be in the sum"):
        play.clients["hr/a"].sign_survivors(NAMES)


def test_names_as_dropped_out_who_has_sent_nothing():
    play = Round()
    play.signatures(NAMES[:6])
    request = play.server.request_for("hr/a")
    with refusal("names others as dropped out"):
        play.clients["hr/a"].unmask(dataclasses.replace(request, dropped=[]))


def test_a_client_that_has_refused_takes_no_further_part():
    play = Round()
    keys = play.keys()
    with refusal("got 1"):
        play.clients["hr/a"].share_keys({"hr/a": keys["hr/a"]})
    with refusal("expected the step refused"):
        play.clients["hr/a"].share_keys(keys)


def test_a_client_with_the_identity_of_another_has_no_place():
    roster = simulated_members(NAMES, 7)["hr/a"].roster
    with pytest.raises(ValueError, match="expected the identity of hr/a"):
        Participant("hr/a", bytes(32), roster)
