"""The tree over the departments and its step, with numbers worked out by hand."""

import numpy as np
import pytest
import torch

from fl_lightning import InputError
from fl_lightning.clustering.rounds import Evidence
from fl_lightning.clustering.tree import NO_GROUPS, ROOT, Tree, step_all, teams
from fl_lightning.config import DeptClustersConfig

A, B = "w.lora_A", "w.lora_B"
DEPARTMENTS = ["finance", "hr", "it", "sales"]
GROUPS = {"company": ["trade", "hr"], "trade": ["sales", "finance"]}
ONE = DeptClustersConfig(method="agglomerative", select="fixed", min_clusters=1, max_clusters=1, mixing_ratio=0.5)


def state(a, b=0.0):
    return {A: torch.tensor([[float(a), 1.0]]), B: torch.tensor([[float(b)]])}


def a_of(level, name):
    return level.states[name][A][0, 0].item()


def step(departments, weights, *, clusters=ONE, tree=None, seeds=None, **changes):
    given = {"groups": {}, "previous": {}, "memory": {}, **changes}
    return step_all(
        clusters,
        tree or Tree.of(GROUPS, DEPARTMENTS),
        departments,
        weights,
        evidence=lambda members: Evidence(members, state(0), {}, {}),
        seed=lambda group: 0 if seeds is None else seeds.append(group) or 0,
        **given,
    )


def test_members_come_before_their_groups_and_the_federation_last():
    tree = Tree.of(GROUPS, DEPARTMENTS)
    assert dict(tree.members) == {"trade": ("finance", "sales"), "company": ("hr", "trade"), ROOT: ("company", "it")}
    assert list(tree.members) == ["trade", "company", ROOT]
    assert tree.groups == ["trade", "company"]
    assert tree.departments("company") == ["finance", "hr", "sales"]
    assert (tree.departments("it"), tree.departments(ROOT)) == (["it"], sorted(DEPARTMENTS))


def test_without_groups_all_departments_belong_to_the_federation():
    assert Tree.of({}, DEPARTMENTS).members == {ROOT: tuple(DEPARTMENTS)}
    assert NO_GROUPS.groups == []


BAD = {
    "nobody": ({"trade": ["finanse"]}, "trade: got 'finanse', wanted a department or another group.*finance"),
    "twice": ({"x": ["hr"], "y": ["hr"]}, "'hr' is in 'x' and in 'y', wanted one group"),
    "twice in one": ({"x": ["hr", "hr"]}, "'hr' is in 'x' and in 'x'"),
    "a department": ({"hr": ["it"]}, "'hr' is a department too; wanted another name"),
    "itself": ({"x": ["x"]}, "'x' would be a member of itself"),
    "a circle": ({"x": ["y"], "y": ["x"]}, "'x' would be a member of itself, wanted a tree"),
    "a path": ({"../x": ["hr"]}, r"'../x': expected 1 to 128 letters"),
    "nothing": ({"": ["hr"]}, "'': expected 1 to 128 letters"),
    "clients and others": ({"x": ["hr/client_0", "it"]}, "x: got 'hr/client_0' and 'it', wanted clients only, or none"),
    "a client twice": ({"x": ["hr/c"], "y": ["hr/c"]}, "'hr/c' is in 'x' and in 'y', wanted one team"),
    "a team without data": ({"x": ["hr/client_0"]}, "'x' has no clients here; wanted data that `with_teams`"),
}


@pytest.mark.parametrize(("groups", "message"), BAD.values(), ids=BAD)
def test_groups_that_are_no_tree_are_refused(groups, message):
    with pytest.raises(InputError, match=f"federation.hierarchy.groups.*{message}"):
        Tree.of(groups, DEPARTMENTS)


def test_teams_are_departments_and_can_be_members():
    groups = {"shell": ["it/c0"], "python": ["it/c1", "it/c2"], "technical": ["shell", "python"]}
    assert teams(groups) == {"it/c0": "shell", "it/c1": "python", "it/c2": "python"}
    assert dict(Tree.of(groups, ["hr", "python", "shell"]).members) == {
        "technical": ("python", "shell"),
        ROOT: ("hr", "technical"),
    }


def test_a_group_is_its_members_mean_and_mixing_pulls_whole_branches():
    departments = {"finance": state(0), "sales": state(4), "hr": state(8), "it": state(16)}
    weights = {"finance": 1.0, "sales": 3.0, "hr": 4.0, "it": 8.0}
    level = step(departments, weights)
    # trade: mean (0 + 3·4) / 4 = 3; finance 0 → 1.5, sales 4 → 3.5
    # company: hr 8 and trade 3, weight 4 each: mean 5.5; hr → 6.75, trade → 4.25, so finance, sales move by 1.25
    # federation: company 5.5, it 16, weight 8 each: mean 10.75; it → 13.375, company → 8.125: all below by 2.625
    assert {name: a_of(level, name) for name in level.states} == {
        "finance": 1.5 + 1.25 + 2.625,
        "sales": 3.5 + 1.25 + 2.625,
        "hr": 6.75 + 2.625,
        "it": 13.375,
        "trade": 4.25 + 2.625,
        "company": 8.125,
    }
    assert level.assignments == dict.fromkeys(["finance", "sales", "hr", "trade", "company", "it"], 0)
    assert list(level.found) == ["trade", "company", ROOT]
    assert level.mixed_bytes == {"department": 4 * 8, "group": 2 * 8}  # A of finance, sales, hr, it; of trade, company


def test_a_group_stays_its_members_mean():
    generator = torch.Generator().manual_seed(1)
    departments = {d: {n: torch.randn(t.shape, generator=generator) for n, t in state(0).items()} for d in DEPARTMENTS}
    weights = dict(zip(DEPARTMENTS, (1.0, 2.0, 3.0, 4.0), strict=True))
    level = step(departments, weights, clusters=DeptClustersConfig(mixing_ratio=0.7, mix="all"))
    for group in ("trade", "company"):
        below = Tree.of(GROUPS, DEPARTMENTS).departments(group)
        total = sum(weights[d] for d in below)
        for name in (A, B):
            mean = sum(weights[d] / total * level.states[d][name].double() for d in below)
            np.testing.assert_allclose(level.states[group][name].double(), mean, atol=1e-6)


def test_mix_a_leaves_every_b_below_as_it_is():
    level = step({d: state(i, i) for i, d in enumerate(DEPARTMENTS)}, dict.fromkeys(DEPARTMENTS, 1.0))
    assert [level.states[d][B].item() for d in DEPARTMENTS] == [0.0, 1.0, 2.0, 3.0]
    assert level.states["trade"][B].item() == 1.5  # the mean of finance and sales


def test_momentum_is_the_step_from_the_groups_state_before():
    before = {"trade": state(10), "company": state(0)}
    off = DeptClustersConfig(enabled=False)
    departments = {"finance": state(0), "sales": state(2)}
    level = step(departments, dict.fromkeys(departments, 1.0), clusters=off, groups=before, momentum=0.25)
    assert a_of(level, "trade") == 10 + 0.25 * (1 - 10)
    assert a_of(level, "company") == pytest.approx(0.25 * a_of(level, "trade"))
    assert (level.found, level.assignments, level.mixed_bytes) == ({}, {}, {})
    assert level.states["finance"] is departments["finance"]


def test_a_group_without_a_new_member_has_no_new_state():
    seeds = []
    level = step({"it": state(1), "hr": state(3)}, {"it": 1.0, "hr": 1.0}, seeds=seeds)
    assert set(level.states) == {"it", "hr", "company"}
    assert seeds == ["company", ROOT]  # each group draws from a seed of its own


def test_without_groups_the_step_is_the_one_between_departments():
    departments = {"hr": state(0), "it": state(4)}
    level = step(departments, {"hr": 1.0, "it": 3.0}, tree=Tree.of({}, departments))
    assert (a_of(level, "hr"), a_of(level, "it")) == (1.5, 3.5)
    assert level.mixed_bytes == {"department": 16}


def test_each_group_keeps_its_own_memory_and_numbers_its_clusters_on():
    clusters = DeptClustersConfig(method="agglomerative", select="fixed", min_clusters=2, max_clusters=2, smoothing=0.5)
    departments = {d: state(i, i) for i, d in enumerate(DEPARTMENTS)}
    weights = dict.fromkeys(departments, 1.0)
    first = step(departments, weights, clusters=clusters)
    assert set(first.memory) == {"trade", "company", ROOT}
    swapped = {"finance": 1, "sales": 0}
    again = step(departments, weights, clusters=clusters, previous=swapped, memory=first.memory)
    assert {name: again.assignments[name] for name in swapped} == swapped
