"""Which round early stopping takes, by losses that are given."""

import math
from dataclasses import replace

import pytest
import torch

from fl_lightning.clustering.tree import NO_GROUPS, Tree
from fl_lightning.data.client_data import ClientData
from fl_lightning.evaluation.early_stopping import keep_best_rounds
from fl_lightning.federation.protocol import Metrics
from fl_lightning.federation.state import FederationState

A, B = "w.lora_A.weight", "w.lora_B.weight"
SELECTION = {"hr/c0": 1, "hr/c1": 3, "it/c0": 2, "it/c1": 0}


class ClientsWithLosses:
    """Answers for its selection records the first value of A in nats a token, with as many tokens as records."""

    def evaluate(self, jobs, split="eval"):
        assert split == "selection"
        return [Metrics(float(s[A][0, 0]) * SELECTION[c], 0.0, SELECTION[c], SELECTION[c]) for s, c in jobs]


@pytest.fixture
def data():
    return {c: ClientData(*c.split("/"), train=[0], eval=[0], selection=[0] * n) for c, n in SELECTION.items()}


def adapter(loss):
    return {A: torch.tensor([[loss, 0.0]]), B: torch.zeros(3, 1)}


def play(data, rounds, tree=NO_GROUPS, **options):
    """The last state and all metrics, after rounds of {department, group or client: loss}."""
    state = FederationState.begin(adapter(9.0), {"hr", "it"}, tree.groups)
    rows = []
    for number, losses in enumerate(rounds, start=1):
        states = {name: adapter(loss) for name, loss in losses.items()}
        state = FederationState(
            number,
            state.initial,
            {d: states.get(d, adapter(9.0)) for d in ("hr", "it")},
            personal={name: s for name, s in states.items() if "/" in name},
            groups={name: s for name, s in states.items() if name in tree.groups},
            best=state.best,
        )
        state, metrics = keep_best_rounds(state, ClientsWithLosses(), data, tree, **options)
        rows.append(metrics)
    return state, rows


def rounds_of(state):
    return {name: best.round_num for name, best in state.best.items()}


def test_every_department_takes_its_round_of_the_lowest_loss_and_the_earlier_of_equals(data):
    state, _ = play(data, [{"hr": 3.0, "it": 1.0}, {"hr": 2.0, "it": 1.0}, {"hr": 2.5, "it": 1.5}])
    assert rounds_of(state) == {"hr": 2, "it": 1}
    assert (state.best["hr"].loss, float(state.final_adapter("hr")[A][0, 0])) == (2.0, 2.0)
    assert float(state.departments["hr"][A][0, 0]) == 2.5  # from which the next round starts


def test_clients_that_share_nothing_take_a_round_each_and_one_without_records_its_last(data):
    state, rows = play(data, [{"hr/c0": 2.0, "hr/c1": 1.0, "it/c1": 5.0}, {"hr/c0": 1.5, "hr/c1": 3.0, "it/c1": 6.0}])
    assert {c: n for c, n in rounds_of(state).items() if "/" in c} == {"hr/c0": 2, "hr/c1": 1}
    assert float(state.final_own_adapter("it/c1")[A][0, 0]) == 6.0
    assert rows[1]["selection/own_loss"] == pytest.approx((1.5 + 3.0) / 2)


def test_an_own_adapter_beside_the_federation_takes_a_round_apart_from_its_department(data):
    state = FederationState.begin(adapter(9.0), {"hr", "it"})
    for number, (own, shared) in enumerate([(1.0, 3.0), (2.0, 2.0)], start=1):
        departments = {"hr": adapter(shared), "it": adapter(shared)}
        state = replace(state, round_num=number, departments=departments, own_adapters={"hr/c0": adapter(own)})
        state, metrics = keep_best_rounds(state, ClientsWithLosses(), data, NO_GROUPS)
    assert rounds_of(state) == {"hr": 2, "it": 2, "hr/c0/own": 1}
    assert float(state.final_own_adapter("hr/c0")[A][0, 0]) == 1.0
    assert (metrics["hr/c0/own/selection/loss"], metrics["selection/own_loss"]) == (2.0, 2.0)
    assert state.final_own_adapter("it/c0") == state.initial  # it has not trained


def test_clients_that_keep_one_factor_have_no_round_of_their_own(data):
    state = FederationState(1, adapter(9.0), {"hr": adapter(2.0), "it": adapter(1.0)}, personal={"hr/c0": {B: 0}})
    assert rounds_of(keep_best_rounds(state, ClientsWithLosses(), data, NO_GROUPS)[0]) == {"hr": 1, "it": 1}


def test_the_loss_of_a_group_is_the_mean_over_the_tokens_of_all_its_clients(data):
    class ByClient:
        def evaluate(self, jobs, split):
            return [Metrics(SELECTION[c] * (1.0 if c == "hr/c0" else 3.0), 0.0, SELECTION[c], 1) for _, c in jobs]

    tree = Tree.of({"all": ["hr", "it"]}, {"hr", "it"})
    state = FederationState.begin(adapter(9.0), {"hr", "it"}, tree.groups)
    _, metrics = keep_best_rounds(state, ByClient(), data, tree)
    assert metrics["all/selection/loss"] == pytest.approx((1.0 + 5 * 3.0) / 6)
    assert metrics["hr/selection/loss"] == pytest.approx((1.0 + 3 * 3.0) / 4)
    assert metrics["selection/loss"] == pytest.approx((2.5 + 3.0) / 2)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_round_whose_loss_is_no_number_is_never_the_best(data, loss):
    state, _ = play(data, [{"hr": loss, "it": 1.0}, {"hr": 2.0, "it": loss}, {"hr": loss, "it": loss}])
    assert rounds_of(state) == {"hr": 2, "it": 1}


def test_rounds_that_are_given_are_taken_without_measuring(data):
    state, rows = play(data, [{"hr": 3.0}, {"hr": 2.0}, {"hr": 1.0}], take_rounds={"hr": 2, "it": 3})
    assert rounds_of(state) == {"hr": 2, "it": 3}
    assert (state.best["hr"].loss, rows) == (None, [{}, {}, {}])


def test_a_round_in_which_a_client_does_not_answer_is_not_judged(data, log_messages):
    class Away:
        def evaluate(self, jobs, split):
            answers = ClientsWithLosses().evaluate(jobs, split)
            is_away = [c == "hr/c1" for _, c in jobs]
            return [Metrics(0.0, 0.0, 0, 0) if away else m for away, m in zip(is_away, answers, strict=True)]

    state = FederationState(1, adapter(9.0), {"hr": adapter(2.0), "it": adapter(1.0)})
    state, metrics = keep_best_rounds(state, Away(), data, NO_GROUPS)
    assert rounds_of(state) == {"it": 1}
    assert metrics == {"it/selection/loss": 1.0, "selection/loss": 1.0}
    assert log_messages == ["WARNING early stopping: this round of hr is not judged, without an answer of hr/c1"]
