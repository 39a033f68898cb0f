"""One adapter out of a mixture: the products against dense matrices, and what distillation is given."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_factors import make_state

from fl_lightning.config.parsing import parse_config
from fl_lightning.data.client_data import ClientData
from fl_lightning.personalization.choice import Choice
from fl_lightning.runs.one_adapter import one_adapter

__all__ = ["make_state"]

WEIGHTS = np.array([0.5, 0.3, 0.2])
CHOICE = Choice(1, WEIGHTS)


@pytest.fixture
def levels(make_state):
    """Three adapters of rank 2 on two layers."""
    return {level: make_state(2, seed) for seed, level in enumerate(("own", "department", "root"))}


class Clients:
    """Notes what it is to distill, and returns the start."""

    def __init__(self):
        train, selection = (SimpleNamespace(name=name) for name in ("train", "selection"))
        self.data = {"hr/a": ClientData("hr", "a", [train], [], [selection])}
        self.calls = []

    def distill(self, start, states, weights, records, *, epochs, seed):
        self.calls.append((states, weights, [record.name for record in records], epochs, seed))
        return start


def products(state):
    return {n: state[n].double() @ state[n.replace("_B", "_A")].double() for n in state if "lora_B" in n}


def make(levels, choice=CHOICE, clients=None, refit=False, client_id="hr/a", **personal):
    config = parse_config(["--lora-r", "2"])
    config = replace(config, personal=replace(config.personal, **personal))
    return one_adapter(config, clients or Clients(), client_id, levels, choice, refit=refit)


def test_average_is_the_weighted_sum_and_svd_the_nearest_of_the_rank_of_own_adapters(levels):
    each = [products(state) for state in levels.values()]
    total = {layer: sum(w * one[layer] for w, one in zip(WEIGHTS, each, strict=True)) for layer in each[0]}
    average, nearest = (products(make(levels, adapter=kind)) for kind in ("average", "svd"))
    for layer, matrix in total.items():
        left, values, right = torch.linalg.svd(matrix)
        torch.testing.assert_close(average[layer], matrix, rtol=1e-5, atol=1e-6)
        expected = left[:, :2] @ values[:2].diag() @ right[:2]
        torch.testing.assert_close(nearest[layer], expected, rtol=1e-5, atol=1e-5)
    assert {t.shape[0] for n, t in make(levels, adapter="svd").items() if "lora_A" in n} == {2}


@pytest.mark.parametrize("kind", ["average", "svd", "distill"])
def test_a_level_that_was_better_is_the_one_adapter(levels, kind):
    clients = Clients()
    assert make(levels, replace(CHOICE, mixes_parameters=False), clients, adapter=kind) is levels["department"]
    assert not clients.calls


def test_distillation_starts_from_svd_and_sees_selection_records_only_in_a_refit(levels):
    clients = Clients()
    started = make(levels, clients=clients, adapter="distill", distill_epochs=7)
    nearest = make(levels, adapter="svd")
    assert all(torch.equal(started[name], nearest[name]) for name in nearest)
    make(levels, clients=clients, adapter="distill", refit=True)
    (states, weights, before, epochs, seed), (*_, after, _, same_seed) = clients.calls
    assert [id(state) for state in states] == [id(state) for state in levels.values()]
    assert (weights, epochs) == (WEIGHTS.tolist(), 7)
    assert (before, after) == (["train"], ["train", "selection"])
    assert seed == same_seed
