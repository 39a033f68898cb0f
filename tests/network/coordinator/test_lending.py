"""Who lends to whom, and what a server does with adapters that are none."""

import pytest
import torch
from sites_in_memory import Memory

from fl_lightning.config import NetworkConfig, PersonalConfig, RunConfig
from fl_lightning.network.compatibility import SharedSettings, SiteInfo
from fl_lightning.network.coordinator import lending
from fl_lightning.network.coordinator.lending import hand_over_own_adapters
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.storage.messages import decode, encode

A, B = "q.lora_A.weight", "q.lora_B.weight"
DEPARTMENT = {A: torch.ones(2, 3), B: torch.zeros(3, 2)}
IDS = ["hr/a", "hr/b", "it/c"]


class Lender:
    """Lends what it is told to, and keeps what it borrows."""

    def __init__(self, client_id):
        self.client_id, self.borrowed = client_id, []
        self.reply = {"lent": True}, [{A: torch.full((2, 3), float(ord(client_id[-1]))), B: torch.ones(3, 2)}]

    def handle(self, message):
        header, states = decode(message)
        content, tensors = self.reply
        if header["do"] == "borrow":
            self.borrowed.append(dict(zip(header["mates"], states, strict=True)))
            content, tensors = {"done": True}, []
        return encode({"client": self.client_id, "request_id": header["request_id"], **content}, tensors)


@pytest.fixture
def made(monkeypatch):
    """Function that makes (tracker, transport) of three sites that lend and borrow everything."""
    monkeypatch.setattr(lending, "LENDING_SECONDS", 0.3)

    def make(apfl_alpha=1.0, **network):
        config = RunConfig(
            personal=PersonalConfig(own="during", apfl_alpha=apfl_alpha), network=NetworkConfig(**network)
        )
        post = Memory({client_id: Lender(client_id) for client_id in IDS})
        settings = SharedSettings.of(config, "fp32", "ab")
        requests = RequestTracker(post, run="5eed", settings=settings, network=config.network)
        for name in IDS:
            requests.sites[name] = SiteInfo(name, 3, 2, 1, 90, "ab", 2, lend="all", mates="all", public_key="5e" * 32)
        return requests, post

    return make


def hand_over(requests):
    hand_over_own_adapters(requests, {"hr": DEPARTMENT, "it": DEPARTMENT})


def test_each_gets_the_others_in_the_order_of_the_sites(made):
    requests, post = made()
    hand_over(requests)
    for client_id in IDS:
        (borrowed,) = post.sites[client_id].borrowed
        assert list(borrowed) == [name for name in IDS if name != client_id]
        assert all(float(state[A][0, 0]) == ord(name[-1]) for name, state in borrowed.items())


def test_several_messages_where_one_would_be_too_large(made):
    requests, post = made(max_message_mb=3 * 1024 / 2**20 * 2)  # half of it is one adapter with its names
    hand_over(requests)
    assert [list(b) for b in post.sites["it/c"].borrowed] == [["hr/a"], ["hr/b"]]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (({"failed": "network.lend: off"}, []), "network.lend: off"),
        (({"lent": True}, []), "expected one adapter"),
        (({"lent": True}, [DEPARTMENT, DEPARTMENT]), "expected one adapter"),
        (({}, [DEPARTMENT]), "expected one adapter"),
        (({"lent": True}, [{A: DEPARTMENT[A]}]), "expected the tensors of this model's adapter"),
        (({"lent": True}, [{A: torch.ones(3, 3), B: torch.ones(3, 3)}]), "expected rank 1 to 2, got 3"),
        (({"lent": True}, [{A: torch.ones(2, 4), B: DEPARTMENT[B]}]), "expected a product of shape"),
        (({"lent": True}, [{A: torch.full((2, 3), torch.inf), B: DEPARTMENT[B]}]), "expected finite numbers"),
        (({"lent": True}, [{A: torch.ones(2, 3).half(), B: DEPARTMENT[B]}]), "expected float32"),
        (({"lent": True, "x": "y" * 2_000_000}, [DEPARTMENT]), "expected at most"),
        (({"client": "hr/b", "lent": True}, [DEPARTMENT]), "whose key it came with"),
    ],
)
def test_an_adapter_that_is_none_is_not_handed_on(made, log_messages, reply, reason):
    requests, post = made()
    post.sites["hr/a"].reply = reply
    hand_over(requests)
    assert list(post.sites["hr/b"].borrowed[0]) == ["it/c"]
    assert list(post.sites["hr/a"].borrowed[0]) == ["hr/b", "it/c"]
    (said,) = [m for m in log_messages if "is not handed on" in m]
    assert "hr/a" in said
    assert reason in said


def test_under_apfl_the_departments_rank_is_added(made):
    requests, post = made(apfl_alpha=0.5)
    joined = {A: torch.ones(4, 3), B: torch.ones(3, 4)}
    post.sites["hr/a"].reply = {"lent": True}, [joined]
    hand_over(requests)
    assert post.sites["hr/b"].borrowed[0]["hr/a"][A].shape == (4, 3)


def test_a_site_that_is_away_or_silent_holds_nobody_up(made, log_messages):
    requests, post = made()
    del post.here["hr/a"]
    post.meddle = lambda client_id, question, answer: None if client_id == "hr/b" else answer
    hand_over(requests)
    assert post.sites["it/c"].borrowed == []
    said = [m for m in log_messages if "is not handed on" in m]
    assert [("not connected" in m, "did not reply in time" in m) for m in said] == [(True, False), (False, True)]
    assert not requests.pending
