import logging

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from fl_lightning.clustering import (
    Grouping,
    cluster_aware_average_selected,
    cluster_states,
    department_level_clustering,
    group_departments,
    kmeans,
    members,
)

A, B = "q.lora_A.weight", "q.lora_B.weight"


def point(*values):
    return {A: torch.tensor([list(values)])}


def directions_and_amplitudes():
    """Two directions (a+b, c+d), two amplitudes (a+c small, b+d large), around a large shared start."""
    draw = torch.Generator().manual_seed(0)
    start = 5 * torch.randn(2, 10, generator=draw)
    one, two = torch.zeros(2, 10), torch.zeros(2, 10)
    one[0, 0], two[1, 5] = 1.0, 1.0
    moves = {"a": 0.02 * one, "b": 1.0 * one + 0.02 * two, "c": 0.02 * two, "d": 1.0 * two + 0.02 * one}
    return {name: {A: start + move} for name, move in moves.items()}, {A: start}


def test_members_inverts_assignments():
    assert members({"b": 1, "a": 0, "c": 1}) == {0: ["a"], 1: ["b", "c"]}


def test_grouping_counts_its_clusters():
    grouping = Grouping({"a": 0, "b": 1, "c": 0}, {1: 1.0}, ["a", "b", "c"], np.eye(3))
    assert grouping.n_clusters == 2
    assert grouping.clusters == {0: ["a", "c"], 1: ["b"]}


def test_delta_recovers_directions():
    states, start = directions_and_amplitudes()
    clusters, _ = department_level_clustering(states, reference=start, seed=0)
    assert clusters == {0: ["a", "b"], 1: ["c", "d"]}


def test_raw_follows_amplitudes_instead():
    # On raw A the small movers a and c are neighbours (distance √2 · 0.02), b and d stand alone.
    states, _ = directions_and_amplitudes()
    _, ids = department_level_clustering(states, representation="raw", max_clusters=3, seed=0)
    assert ids["a"] == ids["c"]
    assert ids["a"] != ids["b"]
    assert ids["c"] != ids["d"]


def test_delta_is_the_default_where_a_reference_is_given_and_raw_where_none_is():
    states, start = directions_and_amplitudes()
    given = department_level_clustering(states, reference=start, seed=0)
    assert given == department_level_clustering(states, reference=start, representation="delta", seed=0)
    none = department_level_clustering(states, seed=0)
    assert none == department_level_clustering(states, representation="raw", seed=0)
    assert none != given


def test_a_pair_and_two_loners_are_three_clusters():
    states = {
        "cs": point(9.0, 0.1, 0.0),
        "eng": point(0.0, 9.0, 0.0),
        "fin": point(9.0, 0.0, 0.1),
        "hr": point(0.0, 0.0, 9.0),
    }
    clusters, ids = department_level_clustering(states, reference=point(0.0, 0.0, 0.0), seed=0)
    assert clusters == {0: ["cs", "fin"], 1: ["eng"], 2: ["hr"]}
    assert ids == {"cs": 0, "eng": 1, "fin": 0, "hr": 2}


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_numbered_by_first_appearance_in_sorted_order(seed):
    # Given in reverse order: sorted order is a, b, c, d; so a's cluster is 0 whatever k-means called it.
    states = {"d": point(9.0), "c": point(0.0), "b": point(9.1), "a": point(0.1)}
    _, ids = department_level_clustering(states, max_clusters=2, seed=seed)
    assert ids == {"a": 0, "b": 1, "c": 0, "d": 1}
    assert list(ids) == ["a", "b", "c", "d"]


def test_order_of_departments_does_not_matter():
    states, start = directions_and_amplitudes()
    backwards = dict(reversed(states.items()))
    first = department_level_clustering(states, reference=start, seed=3)
    assert first == department_level_clustering(backwards, reference=start, seed=3)


def test_identical_departments_are_one_cluster():
    states = {name: point(1.0, 2.0, 3.0) for name in "abcd"}
    clusters, ids = department_level_clustering(states, seed=0)
    assert clusters == {0: ["a", "b", "c", "d"]}
    assert set(ids.values()) == {0}


def test_never_more_clusters_than_distinct_departments():
    states = {"a": point(1.0), "b": point(5.0), "c": point(1.0), "d": point(5.0), "e": point(1.0)}
    clusters, _ = department_level_clustering(states, min_clusters=4, max_clusters=5, seed=0)
    assert clusters == {0: ["a", "c", "e"], 1: ["b", "d"]}


def test_one_department_is_one_cluster():
    assert department_level_clustering({"hr": point(1.0)}, seed=0) == ({0: ["hr"]}, {"hr": 0})


def test_an_unmoved_department_stays_finite_and_is_told(caplog):
    states = {"hr": point(1.0, 1.0), "it": point(2.0, 1.0), "ops": point(1.0, 5.0)}
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        grouping = group_departments(states, reference=point(1.0, 1.0), seed=0)
    assert "hr has not moved" in caplog.text
    assert np.isfinite(grouping.cosine).all()
    assert np.isfinite(list(grouping.inertias.values())).all()
    assert set(grouping.assignments) == {"hr", "it", "ops"}


def test_nobody_moved_is_one_cluster():
    states = {name: point(1.0, 1.0) for name in "abc"}
    assert group_departments(states, reference=point(1.0, 1.0), seed=0).n_clusters == 1


def test_grouping_tells_inertias_and_cosines_of_what_it_saw():
    # Unit directions: hr (1, 0), it (0, 1), ops (0.6, 0.8).
    states = {"ops": point(3.0, 4.0), "hr": point(2.0, 0.0), "it": point(0.0, 7.0)}
    grouping = group_departments(states, reference=point(0.0, 0.0), seed=0)
    assert grouping.departments == ["hr", "it", "ops"]
    np.testing.assert_allclose(grouping.cosine, [[1, 0, 0.6], [0, 1, 0.8], [0.6, 0.8, 1]], atol=1e-7)
    # k=1: half the mean pairwise squared distance: ((2) + (2 − 1.2) + (2 − 1.6)) / 3 = 3.2/3
    # k=2: it and ops together: |it − ops|² / 2 = 0.4/2 = 0.2; k=3: 0
    assert grouping.inertias == {1: pytest.approx(3.2 / 3), 2: pytest.approx(0.2), 3: 0.0}
    assert grouping.assignments == {"hr": 0, "it": 1, "ops": 1}


def test_labels_are_those_of_scikit_learn_on_the_raw_matrix():
    draw = torch.Generator().manual_seed(4)
    middle = 6 * torch.randn(3, 50, generator=draw)
    states = {f"d{i}": {A: middle[i % 3] + 0.3 * torch.randn(50, generator=draw)} for i in range(9)}
    grouping = group_departments(states, representation="raw", seed=0)
    x = np.stack([states[n][A].double().numpy() for n in grouping.departments])
    for k, inertia in grouping.inertias.items():
        expected = KMeans(k, n_init=10, random_state=0).fit(x).inertia_
        assert inertia == pytest.approx(expected, rel=1e-6)
    fitted = KMeans(grouping.n_clusters, n_init=10, random_state=0).fit(x).labels_
    pairs = set(zip(grouping.assignments.values(), fitted.tolist(), strict=True))
    assert len(pairs) == len(set(fitted.tolist())) == grouping.n_clusters


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method: got 'silhouette', wanted 'elbow'"):
        department_level_clustering({"hr": point(1.0)}, "silhouette", seed=0)


def test_no_departments_are_refused():
    with pytest.raises(ValueError, match="states: got no department, wanted at least one"):
        department_level_clustering({}, seed=0)


def test_delta_without_reference_is_refused():
    with pytest.raises(ValueError, match="needs reference"):
        department_level_clustering({"hr": point(1.0)}, representation="delta", seed=0)


def test_cluster_states_are_weighted_by_examples():
    # Cluster 0: (1·2 + 3·6) / 4 = 5; cluster 1: 9 alone.
    states = {"a": point(2.0), "b": point(9.0), "c": point(6.0)}
    means = cluster_states(states, {"a": 1, "b": 10, "c": 3}, {"a": 0, "b": 1, "c": 0})
    assert {c: m[A].item() for c, m in means.items()} == {0: 5.0, 1: 9.0}
    assert means[0][A].dtype == torch.float32


def test_cluster_states_hold_both_factors():
    states = {"a": {A: torch.tensor([0.0]), B: torch.tensor([8.0])}, "b": {A: torch.tensor([4.0]), B: torch.zeros(1)}}
    mean = cluster_states(states, {"a": 3, "b": 1}, {"a": 0, "b": 0})[0]
    # A: (3·0 + 1·4) / 4 = 1; B: (3·8 + 1·0) / 4 = 6
    assert (mean[A].item(), mean[B].item()) == (1.0, 6.0)


def clients():
    return {"c0": point(0.0), "c1": point(4.0), "c2": point(100.0)}


def test_start_is_one_minus_g_of_the_cluster_and_g_of_the_global_state():
    # Cluster {c0, c1} with weights 1, 3: mean 3; start 0.8·3 + 0.2·50 = 12.4. {c2}: 0.8·100 + 0.2·50 = 90.
    starts, ids = cluster_aware_average_selected(
        clients(), {"c0": 1, "c1": 3, "c2": 2}, 2, 0.2, global_state=point(50.0), seed=0
    )
    assert ids == {"c0": 0, "c1": 0, "c2": 1}
    assert starts["c0"][A].item() == pytest.approx(12.4, rel=1e-6)
    assert starts["c1"][A].item() == pytest.approx(12.4, rel=1e-6)
    assert starts["c2"][A].item() == pytest.approx(90.0, rel=1e-6)


def test_without_a_global_state_it_is_the_weighted_mean_of_the_clients():
    # Mean (1·0 + 3·4 + 4·100) / 8 = 51.5; cluster {c0, c1} 3: 0.5·3 + 0.5·51.5 = 27.25
    starts, _ = cluster_aware_average_selected(clients(), {"c0": 1, "c1": 3, "c2": 4}, 2, 0.5, seed=0)
    assert starts["c0"][A].item() == pytest.approx(27.25, rel=1e-6)


def test_the_defaults_are_two_clusters_and_a_fifth_of_global():
    starts, ids = cluster_aware_average_selected(clients(), dict.fromkeys(clients(), 1), seed=0)
    # Cluster {c0, c1} 2, mean 104/3: 0.8·2 + 0.2·104/3 = 8.5333
    assert len(set(ids.values())) == 2
    assert starts["c0"][A].item() == pytest.approx(0.8 * 2 + 0.2 * 104 / 3, rel=1e-6)


def test_global_mix_zero_is_the_cluster_mean_and_one_the_global_state():
    weights = dict.fromkeys(clients(), 1)
    alone, _ = cluster_aware_average_selected(clients(), weights, 2, 0.0, global_state=point(50.0), seed=0)
    together, _ = cluster_aware_average_selected(clients(), weights, 2, 1.0, global_state=point(50.0), seed=0)
    assert [alone[c][A].item() for c in clients()] == [2.0, 2.0, 100.0]
    assert [together[c][A].item() for c in clients()] == [50.0, 50.0, 50.0]


def test_more_clusters_than_clients_are_clamped():
    _, ids = cluster_aware_average_selected(clients(), dict.fromkeys(clients(), 1), 7, seed=0)
    assert ids == {"c0": 0, "c1": 1, "c2": 2}


def test_clients_that_are_equal_share_a_cluster():
    states = {"c0": point(1.0), "c1": point(2.0), "c2": point(1.0)}
    _, ids = cluster_aware_average_selected(states, dict.fromkeys(states, 1), 3, seed=0)
    assert ids == {"c0": 0, "c1": 1, "c2": 0}


def test_one_cluster_takes_everybody():
    starts, ids = cluster_aware_average_selected(clients(), {"c0": 1, "c1": 1, "c2": 2}, 1, 0.0, seed=0)
    # (0 + 4 + 2·100) / 4 = 51
    assert set(ids.values()) == {0}
    assert {starts[c][A].item() for c in clients()} == {51.0}


def test_client_ids_are_numbered_in_sorted_order():
    backwards = dict(reversed(clients().items()))
    _, ids = cluster_aware_average_selected(backwards, dict.fromkeys(clients(), 1), seed=5)
    assert ids == {"c0": 0, "c1": 0, "c2": 1}


@pytest.mark.parametrize(("num_clusters", "global_mix"), [(0, 0.2), (-1, 0.2), (2, -0.1), (2, 1.5), (2, float("nan"))])
def test_numbers_out_of_range_are_refused(num_clusters, global_mix):
    with pytest.raises(ValueError, match=f"got num_clusters {num_clusters}, global_mix {global_mix}; wanted"):
        cluster_aware_average_selected(clients(), dict.fromkeys(clients(), 1), num_clusters, global_mix, seed=0)


def test_no_clients_are_refused():
    with pytest.raises(ValueError, match="states: got no client, wanted at least one"):
        cluster_aware_average_selected({}, {}, seed=0)


def test_clients_of_other_names_are_refused():
    states = {"c0": {A: torch.ones(2)}, "c1": {"k.lora_A.weight": torch.zeros(2)}}
    with pytest.raises(ValueError, match=r"lora_A\.weight"):
        cluster_aware_average_selected(states, {"c0": 1, "c1": 1}, 2, global_state={A: torch.ones(2)}, seed=0)


def test_clients_of_other_shapes_with_as_many_elements_are_refused():
    states = {"c0": {A: torch.ones(2, 3)}, "c1": {A: torch.zeros(3, 2)}}
    with pytest.raises(ValueError, match="shape"):
        cluster_aware_average_selected(states, {"c0": 1, "c1": 1}, 2, global_state={A: torch.ones(2, 3)}, seed=0)


def spread_out(groups, each, width=3000):
    draw = torch.Generator().manual_seed(0)
    middle = 3 * torch.randn(groups, width, generator=draw)
    return {f"{i:03d}": {A: middle[i % groups] + torch.randn(width, generator=draw)} for i in range(groups * each)}, {
        f"{i:03d}": i % groups for i in range(groups * each)
    }


def test_one_gram_product_serves_clusters_and_similarities(monkeypatch):
    calls = []
    inner = kmeans.gram_matrices
    monkeypatch.setattr(kmeans, "gram_matrices", lambda x: calls.append(x.dtype) or inner(x))
    states, wanted = spread_out(3, 4)
    grouping = group_departments(states, representation="raw", seed=0)
    assert calls == [np.float32]
    assert grouping.assignments == wanted
    x = np.stack([states[n][A].double().numpy() for n in grouping.departments])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(grouping.cosine, x @ x.T, atol=1e-12)


def test_more_departments_than_the_exact_path_takes_have_no_similarities(monkeypatch):
    monkeypatch.setattr(kmeans, "EXACT_ROWS", 30)
    states, wanted = spread_out(3, 12)
    grouping = group_departments(states, reference={A: torch.zeros(3000)}, seed=0)
    assert grouping.assignments == wanted
    assert grouping.cosine is None


def test_many_clients_are_clustered_on_a_sketch(monkeypatch, caplog):
    monkeypatch.setattr(kmeans, "EXACT_ROWS", 30)
    states, wanted = spread_out(2, 20)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        _, ids = cluster_aware_average_selected(states, dict.fromkeys(states, 1), 2, seed=0)
    assert "clustering 40 rows on a sketch" in caplog.text
    assert ids == wanted
