import pytest
import torch

from fl_lightning.aggregation.updates import MAX_EXAMPLES, Received, problem_with_update
from fl_lightning.federation.protocol import ClientTask, ClientUpdate

A, B = "q.lora_A.weight", "q.lora_B.weight"


def state(a=1.0, b=1.0, rank=2):
    return {A: torch.full((rank, 3), a), B: torch.full((4, rank), b)}


def update(client_id="hr/a", tensors=None, examples=3, tokens=10):
    return ClientUpdate(client_id, 1, state() if tensors is None else tensors, examples, tokens, [0.5])


TASK = ClientTask("hr/a", 1, state(0.0, 0.0), 7)


def test_a_good_update_has_no_problem():
    assert problem_with_update(update(), TASK, 100.0) is None


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (update(tensors=state(rank=3)), r"q\.lora_A\.weight: shape \(3, 3\), wanted \(2, 3\)"),
        (update(tensors={A: torch.ones(2, 3)}), "1 tensors missing"),
        (update(tensors=state(float("nan"))), "not finite"),
        (update(examples=0), "num_examples is 0, wanted an integer from 1"),
        (update(examples=MAX_EXAMPLES + 1), "num_examples is 1000000001"),
        (update(examples=True), "num_examples is True"),
        (update(tokens=-1), "tokens"),
        (update(tensors=state(1e6)), r"it moved by 2\.45e\+06, wanted at most 100"),
    ],
)
def test_each_problem_is_told(bad, problem):
    import re

    assert re.search(problem, problem_with_update(bad, TASK, 100.0))


def test_what_is_sent_and_what_stays_are_kept_apart_by_client_and_department():
    received = Received()
    for client_id in ("it/a", "hr/b", "it/c"):
        received.add(update(client_id, examples=5), sends="a", keeps="b")
    assert received.departments == ["it", "hr"]
    assert received.clients_of("it") == ["it/a", "it/c"]
    assert list(received.shared["it/a"]) == [A]
    assert list(received.personal["it/a"]) == [B]
    assert received.facts["hr/b"].num_examples == received.examples["hr/b"] == 5
    received.drop("it")
    assert received.departments == list({c.split("/")[0] for c in received.personal}) == ["hr"]
    assert received.facts.keys() == received.examples.keys() == {"hr/b"}


def test_nothing_stays_where_everything_is_sent():
    received = Received()
    received.add(update(), sends="all", keeps="none")
    assert (list(received.shared["hr/a"]), received.personal) == ([A, B], {})


def test_states_are_kept_by_what_it_is_given():
    kept = []
    received = Received(lambda tensors: kept.append(dict(tensors)) or dict(tensors))
    received.add(update(), sends="a", keeps="b")
    assert [list(tensors) for tensors in kept] == [[A], [B]]


def test_the_order_of_arrival_leaves_no_trace():
    received = Received()
    state = {"q.lora_A": torch.ones(1), "q.lora_B": torch.ones(1)}
    for client_id in ("it/b", "hr/a", "it/a"):
        received.add(ClientUpdate(client_id, 1, state, 3, 10), sends="a", keeps="b")
    received.arrange(["hr/a", "hr/b", "it/a", "it/b"])
    for kept in (received.shared, received.personal, received.examples, received.facts):
        assert list(kept) == ["hr/a", "it/a", "it/b"]
