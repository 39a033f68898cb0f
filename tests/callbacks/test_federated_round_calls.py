"""A default round goes through the four functions that users import, and through nothing else for these steps."""

import inspect
from dataclasses import replace

import pytest
import torch

from fl_lightning import clustering, flora, mixing
from fl_lightning.clustering import DepartmentClusters
from fl_lightning.config import FederationConfig

DEPARTMENTS = ("finance", "hr", "it", "law")
SPIED = {
    "aggregate": (flora, "flora_weighted_aggregate"),
    "cluster clients": (clustering, "cluster_aware_average_selected"),
    "cluster departments": (clustering, "department_level_clustering"),
    "mix": (mixing, "mix_with_cluster_average"),
}


def marked(state, number):
    """A state like this one that nothing computes by itself."""
    return {name: torch.full_like(tensor, number) for name, tensor in state.items()}


def regrouped(result, assignments):
    """The result of department_level_clustering with other clusters."""
    return DepartmentClusters(replace(result.clustering, assignments=assignments), result.dissimilarity)


@pytest.fixture
def updates(state):
    return {
        f"{d}/c{k}": (state((k + i, 2.0 * i), (k, i, 1)), 1 + k) for i, d in enumerate(DEPARTMENTS) for k in range(3)
    }


@pytest.fixture
def spy(monkeypatch):
    """Replace the function of a step by one that notes its calls, and lets `change` alter its result."""

    def install(step, change=lambda result, *arguments, **options: result):
        module, name = SPIED[step]
        function, calls = getattr(module, name), []

        def spied(*arguments, **options):
            arguments = [list(a) if inspect.isgenerator(a) else a for a in arguments]
            calls.append((arguments, options))
            return change(function(*arguments, **options), *arguments, **options)

        monkeypatch.setattr(module, name, spied)
        return calls

    return install


def test_a_default_round_calls_each_of_the_four(play, spy, updates):
    order = []
    calls = {}
    for step in SPIED:

        def note(result, *_, step=step, **__):
            order.append(step)
            return result

        calls[step] = spy(step, note)
    trainer = play([updates], FederationConfig(rounds=1))
    assert {step: len(calls[step]) for step in SPIED} == {
        "aggregate": 4, "cluster clients": 4, "cluster departments": 1, "mix": 4
    }  # fmt: skip
    assert list(dict.fromkeys(order)) == list(SPIED)
    items = [arguments[0] for arguments, _ in calls["aggregate"]]
    sent = [[(updates[f"{d}/c{k}"][0], float(1 + k)) for k in range(3)] for d in DEPARTMENTS]
    for got, wanted in zip(items, sent, strict=True):
        assert [weight for _, weight in got] == [weight for _, weight in wanted]
        assert all(torch.equal(a[n], b[n]) for (a, _), (b, _) in zip(got, wanted, strict=True) for n in b)
    (states, *_), _ = calls["cluster departments"][0]
    assert list(states) == list(DEPARTMENTS)
    assert trainer.federation.round_num == 1


def test_what_flora_returns_is_the_departments_state(play, spy, updates, plain_config):
    spy("aggregate", lambda result, *_, **__: marked(result, 5.0))
    trainer = play([updates], plain_config())
    for state in trainer.federation.departments.values():
        assert all((tensor == 5.0).all() for tensor in state.values())


def test_what_client_clustering_returns_is_where_clients_start(play, spy, updates):
    def change(result, *_, **__):
        starts, assignments = result
        return {c: marked(start, 7.0) for c, start in starts.items()}, dict.fromkeys(assignments, 0)

    spy("cluster clients", change)
    trainer = play([updates], FederationConfig(rounds=1))
    assert trainer.federation.client_starts.keys() == updates.keys()
    for client_id in updates:
        assert all((tensor == 7.0).all() for tensor in trainer.federation.start_of(client_id).values())
    assert trainer.report.departments["hr"].client_clusters == {"c0": 0, "c1": 0, "c2": 0}


def test_what_mixing_returns_is_the_departments_state(play, spy, updates):
    spy("mix", lambda result, *_, **__: marked(result, 9.0))
    trainer = play([updates], FederationConfig(rounds=1))
    for state in trainer.federation.departments.values():
        assert all((tensor == 9.0).all() for tensor in state.values())


def test_departments_are_mixed_within_the_clusters_that_clustering_returns(play, spy, updates):
    together = {"finance": 0, "hr": 1, "it": 0, "law": 1}
    spy("cluster departments", lambda result, *_, **__: regrouped(result, together))
    mixes = spy("mix")
    trainer = play([updates], FederationConfig(rounds=1))
    assert trainer.federation.cluster_assignments == together
    assert trainer.report.clustering.clusters == {0: ["finance", "it"], 1: ["hr", "law"]}
    means = [arguments[1] for arguments, _ in mixes]
    same = [[torch.equal(a["w.lora_A.weight"], b["w.lora_A.weight"]) for b in means] for a in means]
    assert same == [[one == other for other in together.values()] for one in together.values()]
