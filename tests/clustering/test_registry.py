import numpy as np
import pytest
import torch

from fl_lightning import clustering
from fl_lightning.clustering import registry
from fl_lightning.clustering.dissimilarity import from_gram
from fl_lightning.clustering.registry import METHODS, REPRESENTATIONS, SELECT, cluster, pairwise_dissimilarity
from fl_lightning.clustering.sums_of_squares import DepartmentClients
from fl_lightning.errors import InputError

A, B = "q.lora_A.weight", "q.lora_B.weight"
TRUTH = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}


def adapters(draw, names, ranks=(3,), noise=0.15):
    """Adapters that moved from one start in the direction of their group, A and B both."""
    start = torch.randn(4, 40, generator=draw, dtype=torch.float64) / 40**0.5
    ways = {g: (torch.randn(4, 40, generator=draw), torch.randn(30, 4, generator=draw)) for g in range(3)}
    states = {}
    for i, (name, group_) in enumerate(names.items()):
        rank = ranks[i % len(ranks)]
        a, b = (way + noise * torch.randn(way.shape, generator=draw) for way in ways[group_])
        states[name] = {A: (start + 0.1 * a / 40**0.5)[:rank], B: 0.1 * b[:, :rank]}
    return {A: start[: max(ranks)], B: torch.zeros(30, max(ranks))}, states


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("representation", ["delta", "subspace", "subspace_residual", "product"])
def test_every_representation_finds_who_moved_alike(representation, method):
    start, states = adapters(torch.Generator().manual_seed(0), TRUTH)
    dissimilarity = pairwise_dissimilarity(states, representation, reference=start)
    result = cluster(dissimilarity, method=method, select="fixed", min_clusters=3, seed=0)
    assert result.assignments == TRUTH


@pytest.mark.parametrize("representation", ["subspace_residual", "product"])
def test_mixed_ranks_are_grouped(representation):
    start, states = adapters(torch.Generator().manual_seed(0), TRUTH, ranks=(4, 3))
    dissimilarity = pairwise_dissimilarity(states, representation, reference=start)
    assert cluster(dissimilarity, select="fixed", min_clusters=3, seed=0).assignments == TRUTH


def test_cross_losses_are_grouped():
    losses = 1 + 3.0 * (np.array([*TRUTH.values()])[:, None] != np.array([*TRUTH.values()])[None, :])
    dissimilarity = pairwise_dissimilarity(dict.fromkeys(TRUTH, {}), "cross_loss", losses=losses)
    assert cluster(dissimilarity, method="agglomerative", select="silhouette", seed=0).assignments == TRUTH


@pytest.mark.parametrize("representation", ["delta", "subspace_residual", "product"])
def test_dynamic_goes_from_client_states_to_clusters(representation):
    names = {f"{d}/{i}": g for d, g in {"hr": 0, "it": 1, "law": 0, "ops": 1}.items() for i in range(3)}
    start, clients = adapters(torch.Generator().manual_seed(1), names, noise=1.0)
    owner = {name: name.split("/")[0] for name in names}
    means = {
        d: {n: torch.stack([clients[c][n] for c in names if owner[c] == d]).mean(dim=0) for n in (A, B)}
        for d in sorted(set(owner.values()))
    }
    result = cluster(
        pairwise_dissimilarity(means, representation, reference=start),
        select="dynamic",
        clients=DepartmentClients(pairwise_dissimilarity(clients, representation, reference=start), owner),
        seed=0,
    )
    assert result.assignments == {"hr": 0, "it": 1, "law": 0, "ops": 1}


@pytest.mark.parametrize("representation", list(REPRESENTATIONS))
def test_identical_states_are_one_cluster(representation):
    start, states = adapters(torch.Generator().manual_seed(0), {"a": 0})
    same = dict.fromkeys("abcd", states["a"])
    dissimilarity = pairwise_dissimilarity(same, representation, reference=start, losses=np.full((4, 4), 2.0))
    for method in METHODS:
        for select in ("fixed", "elbow", "silhouette", "eigengap"):
            assert set(cluster(dissimilarity, method=method, select=select, seed=0).assignments.values()) == {0}


def test_order_of_departments_does_not_matter():
    start, states = adapters(torch.Generator().manual_seed(0), TRUTH)
    for representation in ("raw", "delta", "subspace", "subspace_residual", "product"):
        forward = pairwise_dissimilarity(states, representation, reference=start)
        backward = pairwise_dissimilarity(dict(reversed(states.items())), representation, reference=start)
        np.testing.assert_array_equal(forward.dissimilarity, backward.dissimilarity)


def test_tables_in_the_docstring_name_everything_registered():
    words = {line.split(" ")[0] for line in clustering.__doc__.splitlines()}
    assert {*REPRESENTATIONS, *METHODS, *SELECT} <= words


def test_options_are_those_of_the_functions():
    assert {name: registry.options_of(function) for name, function in SELECT.items()} == {
        "fixed": [], "elbow": [], "silhouette": [], "eigengap": [], "dynamic": ["level", "draws", "min_separation"],
    }  # fmt: skip
    needs = {name: registry.options_of(function) for name, function in REPRESENTATIONS.items()}
    assert [name for name in needs if "reference" in needs[name]] == ["delta", "subspace_residual"]
    assert needs["cross_loss"] == ["losses"]


def test_what_is_not_registered_or_missing_is_refused():
    dissimilarity = from_gram(["a", "b"], np.eye(2))
    with pytest.raises(
        InputError, match="representation: expected one of delta, .*, got 'deltas'; did you mean 'delta'"
    ):
        pairwise_dissimilarity({"a": {A: torch.ones(1, 1)}}, "deltas")
    with pytest.raises(InputError, match="representation 'delta': expected reference, got none; pass reference="):
        pairwise_dissimilarity({"a": {A: torch.ones(1, 1)}}, "delta")
    with pytest.raises(InputError, match="method: expected one of kmeans, .*, got 'k_means'"):
        cluster(dissimilarity, method="k_means", seed=0)
    with pytest.raises(InputError, match="select: expected one of elbow, .*, got 'gap'"):
        cluster(dissimilarity, select="gap", seed=0)
    with pytest.raises(InputError, match="select 'dynamic': expected one of level, draws, .*, got 'levels'"):
        cluster(dissimilarity, select="dynamic", seed=0, levels=1)
    with pytest.raises(InputError, match="select 'elbow': expected no options, got 'level'"):
        cluster(dissimilarity, seed=0, level=1)
