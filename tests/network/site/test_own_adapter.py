"""A site's own adapter between its rounds, with fits and losses that are given."""

import pytest
import torch

from fl_lightning.config import (
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    PersonalConfig,
    RunConfig,
    TrainingConfig,
)
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.network.site.own_adapter import after_fit, from_store, own_fit, to_store
from fl_lightning.network.site.store import SiteStore

A, B = "q.lora_A.weight", "q.lora_B.weight"
INITIAL = {A: torch.ones(1, 2), B: torch.zeros(2, 1)}
DATA = ClientData("hr", "a", train=[0], eval=[0], selection=[0])
DURING = PersonalConfig(own="during")


class ClientsWithLosses:
    """The loss of an adapter is the first value of its A."""

    def evaluate(self, jobs, split="eval"):
        assert split == "selection"
        return [Metrics(float(state[A][0, 0]), 0.0, 1, 1) for state, _ in jobs]


@pytest.fixture
def play(tmp_path):
    """Function that plays rounds of given values of A, each from the store; the stored rounds come back."""

    def run(values, every=1):
        config = RunConfig(
            federation=FederationConfig(rounds=len(values)),
            training=TrainingConfig(early_stopping=True),
            data=DataConfig(selection_fraction=0.5),
            evaluation=EvaluationConfig(every=every),
            personal=DURING,
        )
        store, states = SiteStore(tmp_path), []
        for round_num, value in enumerate(values, start=1):
            before = from_store("hr/a", INITIAL, store.load_before(round_num)[1])
            (task,) = own_fit(DURING, before, ClientTask("hr/a", round_num, {A: INITIAL[A] + 5, B: INITIAL[B]}, 7))
            expected = states[-1].own_adapters["hr/a"] if states and states[-1].own_adapters else INITIAL
            assert torch.equal(task.start[A], expected[A])  # it goes on from itself, not from the department
            update = ClientUpdate("hr/a", round_num, {A: torch.tensor([[value, 1.0]]), B: INITIAL[B]}, 1, 1, [1.0])
            after = after_fit(config, before, task, update, ClientsWithLosses(), DATA)
            store.save(round_num, to_store(after))
            states.append(from_store("hr/a", INITIAL, store.load_before(round_num + 1)[1]))
        return states

    return run


def taken(states):
    return [(best.round_num, best.loss) for state in states for best in state.best.values()]


def test_the_best_round_comes_back_from_the_disk_with_its_loss(play):
    states = play([2.0, 1.1, 3.0])
    assert taken(states) == [(1, 2.0), (2, float(torch.tensor(1.1))), (2, float(torch.tensor(1.1)))]
    assert [float(state.own_adapters["hr/a"][A][0, 0]) for state in states] == pytest.approx([2.0, 1.1, 3.0])
    assert float(states[-1].final_own_adapter("hr/a")[A][0, 0]) == pytest.approx(1.1)


def test_a_fit_that_failed_leaves_the_adapter_as_it_was(play, log_messages):
    states = play([2.0, float("nan"), 3.0])
    assert [float(state.own_adapters["hr/a"][A][0, 0]) for state in states] == [2.0, 2.0, 3.0]
    assert any("round 2: dropping the fit of this site's own adapter" in m for m in log_messages)


def test_rounds_without_an_evaluation_are_not_judged(play):
    assert [round_num for round_num, _ in taken(play([1.0, 2.0, 3.0], every=2))] == [2, 2]


def test_before_its_first_fit_there_is_no_own_adapter_and_without_own_adapters_there_is_no_fit():
    state = from_store("hr/a", INITIAL, {"private": {B: INITIAL[B]}})
    assert (state.own_adapters, state.best, to_store(state)) == ({}, {}, {})
    assert own_fit(PersonalConfig(), state, ClientTask("hr/a", 1, INITIAL, 7)) == []
