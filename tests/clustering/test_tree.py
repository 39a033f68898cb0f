import pytest

from fl_lightning import InputError
from fl_lightning.clustering.tree import NO_GROUPS, ROOT, Tree, client_teams

DEPARTMENTS = ["finance", "hr", "it", "sales"]
GROUPS = {"company": ["trade", "hr"], "trade": ["sales", "finance"]}


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
    "nobody": ({"trade": ["finanse"]}, "trade: expected departments or other groups, got 'finanse'.*finance"),
    "twice": ({"x": ["hr"], "y": ["hr"]}, "expected 'hr' in one group, got it in 'x' and 'y'"),
    "twice in one": ({"x": ["hr", "hr"]}, "expected 'hr' in one group, got it in 'x' and 'x'"),
    "a department": ({"hr": ["it"]}, "expected a name that no department has, got 'hr'"),
    "itself": ({"x": ["x"]}, "expected a tree, got 'x' as a member of itself"),
    "a circle": ({"x": ["y"], "y": ["x"]}, "expected a tree, got 'x' as a member of itself"),
    "a path": ({"../x": ["hr"]}, r"'../x': expected 1 to 128 letters"),
    "nothing": ({"": ["hr"]}, "'': expected 1 to 128 letters"),
    "clients and others": (
        {"x": ["hr/client_0", "it"]},
        "x: expected only clients or none, got 'hr/client_0'",
    ),
    "a client twice": ({"x": ["hr/c"], "y": ["hr/c"]}, "expected 'hr/c' in one team, got it in 'x' and 'y'"),
    "a team without data": (
        {"x": ["hr/client_0"]},
        "expected data for team 'x', got no clients; apply `regroup_clients`",
    ),
}


@pytest.mark.parametrize(("groups", "message"), BAD.values(), ids=BAD)
def test_groups_that_are_no_tree_are_refused(groups, message):
    with pytest.raises(InputError, match=f"federation.hierarchy.groups.*{message}"):
        Tree.of(groups, DEPARTMENTS)


def test_teams_are_departments_and_can_be_members():
    groups = {"shell": ["it/c0"], "python": ["it/c1", "it/c2"], "technical": ["shell", "python"]}
    assert client_teams(groups) == {"it/c0": "shell", "it/c1": "python", "it/c2": "python"}
    assert dict(Tree.of(groups, ["hr", "python", "shell"]).members) == {
        "technical": ("python", "shell"),
        ROOT: ("hr", "technical"),
    }


def test_departments_of_different_groups_share_no_cluster_though_each_group_counts_from_0():
    tree = Tree.of({"trade": ["finance", "sales"], "staff": ["hr", "it"]}, ["finance", "hr", "it", "law", "sales"])
    inside = {"finance": 1, "sales": 0, "hr": 0, "it": 0, "law": 0, "trade": 0, "staff": 1}
    clusters = tree.department_clusters(inside)
    assert clusters.keys() == {"finance", "sales", "hr", "it", "law"}
    together = {(a, b) for a in clusters for b in clusters if a < b and clusters[a] == clusters[b]}
    assert together == {("hr", "it")}


def test_without_groups_a_department_keeps_the_number_of_its_cluster():
    assert Tree.of({}, ["it", "hr"]).department_clusters({"it": 0, "hr": 1}) == {"it": 0, "hr": 1}
