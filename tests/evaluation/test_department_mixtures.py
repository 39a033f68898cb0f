"""Weights of departments, by losses that are given."""

import numpy as np
import pytest
import torch

from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import RunError
from fl_lightning.evaluation.department_mixtures import fit_mixtures, levels_of, measure_mixtures
from fl_lightning.federation.state import BestRound, FederationState
from fl_lightning.personalization.mixture import fit_weights

A, B = "w.lora_A.weight", "w.lora_B.weight"


def adapter(loss):
    return {A: torch.tensor([[loss, 0.0]]), B: torch.ones(3, 1)}


LEVELS = {"hr": {"department": adapter(2.0), "root": adapter(1.0)}, "it": {"department": adapter(1.0)}}


class ClientsWithLosses:
    """A record is a token and a number, which adds to its loss under each adapter but the first: the adapter's A."""

    def __init__(self, data):
        self.data = data

    def target_losses_of(self, states, client_ids, split):
        records = [r for client_id in client_ids for r in getattr(self.data[client_id], split)]
        return np.array([[float(s[A][0, 0]) + r * k for k, s in enumerate(states)] for r in records]).reshape(
            len(records), len(states)
        )


@pytest.fixture
def data():
    tokens = {"hr/a": [0.0, 2.0, 4.0], "hr/b": [0.1], "it/a": []}
    return {c: ClientData(*c.split("/"), train=[], eval=t[:2], selection=t) for c, t in tokens.items()}


def test_weights_are_those_of_the_records_of_all_clients_with_a_prior_for_the_department(data):
    weights = fit_mixtures(ClientsWithLosses(data), data, LEVELS, 0.25)
    losses = np.array([[2.0, 1.0], [2.0, 3.0], [2.0, 5.0], [2.0, 1.1]])
    assert list(weights["hr"].values()) == fit_weights(losses, np.array([0.25, 0.0])).tolist()
    assert 0.05 < weights["hr"]["root"] < 0.95


@pytest.mark.parametrize("prior", [0.0, 20.0])
def test_a_department_without_selection_records_keeps_to_its_own_adapter(data, prior):
    levels = {"it": {"department": adapter(1.0), "root": adapter(0.0)}}
    assert fit_mixtures(ClientsWithLosses(data), data, levels, prior) == {"it": {"department": 1.0, "root": 0.0}}


def test_losses_are_means_over_tokens_and_departments_without_records_have_none(data):
    measured = measure_mixtures(ClientsWithLosses(data), data, LEVELS, {"hr": {"department": 0.5, "root": 0.5}})
    mixed = -np.log((np.exp(-2.0) + np.exp(-np.array([1.0, 3.0, 1.1]))) / 2).mean()
    assert measured == {"hr": {"department": 2.0, "root": pytest.approx(1.7), "mixture": pytest.approx(mixed)}}


def test_a_loss_that_is_no_number_ends_the_run_with_the_department(data):
    levels = {"hr": {"department": adapter(1.0), "root": adapter(np.inf)}}
    with pytest.raises(RunError, match="the mixture of hr: losses: expected finite numbers.*learning_rate"):
        fit_mixtures(ClientsWithLosses(data), data, levels, 1.0)


def test_levels_are_made_of_the_adapters_that_the_run_gives_out():
    state = FederationState.begin({**adapter(9.0), B: torch.zeros(3, 1)}, {"hr", "it"})
    state.best["hr"] = BestRound(1, 0.5, adapter(3.0))
    levels = levels_of(state)
    assert float(levels["hr"]["department"][A][0, 0]) == 3.0  # of its best round under early stopping
    assert list(levels["it"]) == ["department", "root"]
