import pytest
import torch

from fl_lightning.data.client_data import ClientData
from fl_lightning.evaluation.cross_loss import cross_losses, leave_one_out
from fl_lightning.federation.protocol import Metrics

NAMES = [("hr", "client_0"), ("hr", "client_1"), ("sales", "client_0")]
DATA = {f"{d}/{c}": ClientData(d, c, [], []) for d, c in NAMES}


class FixedClients:
    """Returns the given metrics, whatever the adapters."""

    def __init__(self, *metrics):
        self.metrics = metrics

    def evaluate(self, jobs, split="eval"):
        assert len(list(jobs)) == len(self.metrics)
        return list(self.metrics)


def test_a_pair_without_a_measurement_gets_the_mean_of_the_others():
    unmeasured = Metrics(0.0, 0.0, 0, 0)
    losses = [20.0, 40.0, None, 10.0, None, None]
    jobs = [unmeasured if loss is None else Metrics(loss, 0.0, 10, 1) for loss in losses]
    states = {"hr": {}, "sales": {}}
    assert cross_losses(FixedClients(*jobs), DATA, states, {"hr": "hr", "sales": "sales"}).tolist() == [
        [3.0, 2.0],
        [1.0, 2.0],
    ]


class LossIsTheState:
    """The loss of an adapter is its only number; every client has one token."""

    def evaluate(self, jobs, split="eval"):
        return [Metrics(float(state["a"]), 0.0, 1, 1) for state, _ in jobs]


def test_leave_one_out_weights_the_mean_by_examples_and_keeps_what_is_not_shared():
    updates = {"hr/c0": {"a": torch.tensor(1.0)}, "hr/c1": {"a": torch.tensor(5.0)}}
    loss, without = leave_one_out(
        LossIsTheState(), ["hr/c0"], {"a": torch.tensor(0.0), "b": torch.tensor(9.0)}, updates, {"hr/c0": 3, "hr/c1": 1}
    )
    assert loss == pytest.approx(2.0)
    assert without == {"hr/c0": pytest.approx(5.0), "hr/c1": pytest.approx(1.0)}


def test_leave_one_out_of_one_client_has_no_loss_without_it():
    updates = {"hr/c0": {"a": torch.tensor(1.0)}}
    assert leave_one_out(LossIsTheState(), ["hr/c0"], {}, updates, {"hr/c0": 3}) == (1.0, {})
