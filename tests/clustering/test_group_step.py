"""The step at every group, with numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_lightning.clustering.group_step import step_groups
from fl_lightning.clustering.rounds import ClusteringInputs, cluster_round
from fl_lightning.clustering.tree import ROOT, Tree
from fl_lightning.config import DeptClustersConfig
from fl_lightning.mixing import mix_with_cluster_average

A, B = "w.lora_A", "w.lora_B"
DEPARTMENTS = ["finance", "hr", "it", "sales"]
GROUPS = {"company": ["trade", "hr"], "trade": ["sales", "finance"]}
ONE = DeptClustersConfig(method="agglomerative", select="fixed", min_clusters=1, max_clusters=1, mixing_ratio=0.5)


def state(a, b=0.0):
    return {A: torch.tensor([[float(a), 1.0]]), B: torch.tensor([[float(b)]])}


def a_of(result, name):
    return result.states[name][A][0, 0].item()


def step(departments, weights, *, clusters=ONE, tree=None, seeds=None, **changes):
    arguments = {"groups": {}, "previous": {}, "memory": {}, **changes}
    return step_groups(
        clusters,
        tree or Tree.of(GROUPS, DEPARTMENTS),
        departments,
        weights,
        inputs=lambda members: ClusteringInputs(members, state(0), {}, {}),
        seed=lambda group: 0 if seeds is None else seeds.append(group) or 0,
        cluster=cluster_round,
        mix=mix_with_cluster_average,
        **arguments,
    )


def test_states_stay_as_they_are_where_predictions_are_mixed():
    departments = {name: state(number, number) for number, name in enumerate(DEPARTMENTS)}
    result = step(
        departments,
        dict.fromkeys(DEPARTMENTS, 1.0),
        clusters=replace(ONE, mix="predictions"),
        tree=Tree.of({}, DEPARTMENTS),
    )
    assert result.states == departments
    assert (result.assignments, result.mixed_bytes) == (dict.fromkeys(DEPARTMENTS, 0), {})


def test_a_group_is_its_members_mean_and_mixing_pulls_whole_branches():
    departments = {"finance": state(0), "sales": state(4), "hr": state(8), "it": state(16)}
    weights = {"finance": 1.0, "sales": 3.0, "hr": 4.0, "it": 8.0}
    result = step(departments, weights)
    # trade: mean (0 + 3·4) / 4 = 3; finance 0 → 1.5, sales 4 → 3.5
    # company: hr 8 and trade 3, weight 4 each: mean 5.5; hr → 6.75, trade → 4.25, so finance, sales move by 1.25
    # federation: company 5.5, it 16, weight 8 each: mean 10.75; it → 13.375, company → 8.125: all below by 2.625
    assert {name: a_of(result, name) for name in result.states} == {
        "finance": 1.5 + 1.25 + 2.625,
        "sales": 3.5 + 1.25 + 2.625,
        "hr": 6.75 + 2.625,
        "it": 13.375,
        "trade": 4.25 + 2.625,
        "company": 8.125,
    }
    assert result.assignments == dict.fromkeys(["finance", "sales", "hr", "trade", "company", "it"], 0)
    assert list(result.clusterings) == ["trade", "company", ROOT]
    assert result.mixed_bytes == {"department": 4 * 8, "group": 2 * 8}  # A of finance, sales, hr, it; of trade, company


def test_a_group_stays_its_members_mean():
    generator = torch.Generator().manual_seed(1)
    departments = {d: {n: torch.randn(t.shape, generator=generator) for n, t in state(0).items()} for d in DEPARTMENTS}
    weights = dict(zip(DEPARTMENTS, (1.0, 2.0, 3.0, 4.0), strict=True))
    result = step(departments, weights, clusters=DeptClustersConfig(mixing_ratio=0.7, mix="all"))
    for group in ("trade", "company"):
        below = Tree.of(GROUPS, DEPARTMENTS).departments(group)
        total = sum(weights[d] for d in below)
        for name in (A, B):
            mean = sum(weights[d] / total * result.states[d][name].double() for d in below)
            np.testing.assert_allclose(result.states[group][name].double(), mean, atol=1e-6)


def test_mix_a_leaves_every_b_below_as_it_is():
    result = step({d: state(i, i) for i, d in enumerate(DEPARTMENTS)}, dict.fromkeys(DEPARTMENTS, 1.0))
    assert [result.states[d][B].item() for d in DEPARTMENTS] == [0.0, 1.0, 2.0, 3.0]
    assert result.states["trade"][B].item() == 1.5  # the mean of finance and sales


def test_momentum_is_the_step_from_the_groups_state_before():
    before = {"trade": state(10), "company": state(0)}
    off = DeptClustersConfig(enabled=False)
    departments = {"finance": state(0), "sales": state(2)}
    result = step(departments, dict.fromkeys(departments, 1.0), clusters=off, groups=before, momentum=0.25)
    assert a_of(result, "trade") == 10 + 0.25 * (1 - 10)
    assert a_of(result, "company") == pytest.approx(0.25 * a_of(result, "trade"))
    assert (result.clusterings, result.assignments, result.mixed_bytes) == ({}, {}, {})
    assert result.states["finance"] is departments["finance"]


def test_a_group_without_a_new_member_has_no_new_state():
    seeds = []
    result = step({"it": state(1), "hr": state(3)}, {"it": 1.0, "hr": 1.0}, seeds=seeds)
    assert set(result.states) == {"it", "hr", "company"}
    assert seeds == ["company", ROOT]  # each group draws from a separate seed


def test_without_groups_the_step_is_the_one_between_departments():
    departments = {"hr": state(0), "it": state(4)}
    result = step(departments, {"hr": 1.0, "it": 3.0}, tree=Tree.of({}, departments))
    assert (a_of(result, "hr"), a_of(result, "it")) == (1.5, 3.5)
    assert result.mixed_bytes == {"department": 16}


def test_each_group_keeps_its_own_memory_and_numbers_its_clusters_on():
    clusters = DeptClustersConfig(method="agglomerative", select="fixed", min_clusters=2, max_clusters=2, smoothing=0.5)
    departments = {d: state(i, i) for i, d in enumerate(DEPARTMENTS)}
    weights = dict.fromkeys(departments, 1.0)
    first = step(departments, weights, clusters=clusters)
    assert set(first.memory) == {"trade", "company", ROOT}
    swapped = {"finance": 1, "sales": 0}
    again = step(departments, weights, clusters=clusters, previous=swapped, memory=first.memory)
    assert {name: again.assignments[name] for name in swapped} == swapped
