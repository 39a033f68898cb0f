import logging
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fl_lightning.clustering import (
    classical_scaling,
    cluster_aware_average_selected,
    cluster_states,
    department_level_clustering,
    determine_optimal_clusters,
    dissimilarity,
    kmeans,
    registry,
)
from fl_lightning.clustering.dissimilarity import from_rows
from fl_lightning.clustering.n_clusters import sharpest_bend
from fl_lightning.clustering.partition import number_by_first_appearance
from fl_lightning.clustering.random_projection import projection_size

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


def test_an_unmoved_department_stays_finite_and_is_logged(caplog):
    states = {"hr": point(1.0, 1.0), "it": point(2.0, 1.0), "ops": point(1.0, 5.0)}
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        clustering = department_level_clustering(states, reference=point(1.0, 1.0), seed=0).clustering
    assert "hr has not moved" in caplog.text
    assert np.isfinite(clustering.cosine).all()
    assert np.isfinite(list(clustering.inertias.values())).all()
    assert set(clustering.assignments) == {"hr", "it", "ops"}


def test_nobody_moved_is_one_cluster():
    states = {name: point(1.0, 1.0) for name in "abc"}
    assert department_level_clustering(states, reference=point(1.0, 1.0), seed=0)[0] == {0: ["a", "b", "c"]}


def test_inertias_and_cosines_are_those_of_the_representation():
    # Unit directions: hr (1, 0), it (0, 1), ops (0.6, 0.8).
    states = {"ops": point(3.0, 4.0), "hr": point(2.0, 0.0), "it": point(0.0, 7.0)}
    clustering = department_level_clustering(states, reference=point(0.0, 0.0), seed=0).clustering
    assert clustering.departments == ["hr", "it", "ops"]
    np.testing.assert_allclose(clustering.cosine, [[1, 0, 0.6], [0, 1, 0.8], [0.6, 0.8, 1]], atol=1e-7)
    # k=1: half the mean pairwise squared distance: ((2) + (2 − 1.2) + (2 − 1.6)) / 3 = 3.2/3
    # k=2: it and ops together: |it − ops|² / 2 = 0.4/2 = 0.2; k=3: 0
    assert clustering.inertias == {1: pytest.approx(3.2 / 3), 2: pytest.approx(0.2), 3: 0.0}
    assert clustering.assignments == {"hr": 0, "it": 1, "ops": 1}


def test_labels_are_those_of_scikit_learn_on_the_raw_matrix():
    draw = torch.Generator().manual_seed(4)
    centers = 6 * torch.randn(3, 50, generator=draw)
    states = {f"d{i}": {A: centers[i % 3] + 0.3 * torch.randn(50, generator=draw)} for i in range(9)}
    clustering = department_level_clustering(states, representation="raw", seed=0).clustering
    x = np.stack([states[n][A].double().numpy() for n in clustering.departments])
    for k, inertia in clustering.inertias.items():
        expected = KMeans(k, n_init=10, random_state=0).fit(x).inertia_
        assert inertia == pytest.approx(expected, rel=1e-6)
    fitted = KMeans(clustering.n_clusters, n_init=10, random_state=0).fit(x).labels_
    pairs = set(zip(clustering.assignments.values(), fitted.tolist(), strict=True))
    assert len(pairs) == len(set(fitted.tolist())) == clustering.n_clusters


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="select: expected one of elbow, .*, got 'elbows'; did you mean 'elbow'"):
        department_level_clustering({"hr": point(1.0)}, "elbows", seed=0)


def test_no_departments_are_refused():
    with pytest.raises(ValueError, match="states: expected at least one, got none"):
        department_level_clustering({}, seed=0)


def test_delta_without_reference_is_refused():
    with pytest.raises(ValueError, match="representation 'delta': expected reference, got none"):
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
    with pytest.raises(
        ValueError, match=f"expected num_clusters ≥ 1 .*, got num_clusters {num_clusters}, global_mix {global_mix}"
    ):
        cluster_aware_average_selected(clients(), dict.fromkeys(clients(), 1), num_clusters, global_mix, seed=0)


def test_no_clients_are_refused():
    with pytest.raises(ValueError, match="states: expected at least one client, got none"):
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
    centers = 3 * torch.randn(groups, width, generator=draw)
    return {f"{i:03d}": {A: centers[i % groups] + torch.randn(width, generator=draw)} for i in range(groups * each)}, {
        f"{i:03d}": i % groups for i in range(groups * each)
    }


def test_one_gram_product_serves_clusters_and_similarities(monkeypatch):
    calls = []
    inner = classical_scaling.gram_matrices
    monkeypatch.setattr(dissimilarity, "gram_matrices", lambda x: calls.append(x.dtype) or inner(x))
    states, expected = spread_out(3, 4)
    clustering = department_level_clustering(states, representation="raw", seed=0).clustering
    assert calls == [np.float32]
    assert clustering.assignments == expected
    x = np.stack([states[n][A].double().numpy() for n in clustering.departments])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(clustering.cosine, x @ x.T, atol=1e-12)


def test_more_departments_than_the_exact_path_takes_have_no_similarities(monkeypatch):
    monkeypatch.setattr(dissimilarity, "EXACT_ROWS", 30)
    states, expected = spread_out(3, 12)
    clustering = department_level_clustering(states, reference={A: torch.zeros(3000)}, seed=0).clustering
    assert clustering.assignments == expected
    assert clustering.cosine is None


def test_many_clients_are_clustered_after_a_random_projection(monkeypatch, caplog):
    monkeypatch.setattr(dissimilarity, "EXACT_ROWS", 30)
    states, expected = spread_out(2, 20)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        _, ids = cluster_aware_average_selected(states, dict.fromkeys(states, 1), 2, seed=0)
    assert "clustering 40 rows after a random projection" in caplog.text
    assert ids == expected


def blobs(n_centers, each, features, spread=0.05, seed=0):
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(n_centers, features)) * 4
    return np.concatenate([centers[c] + spread * draw.normal(size=(each, features)) for c in range(n_centers)])


def cluster_rows(x):
    return registry.cluster(from_rows([f"{i:03}" for i in range(len(x))], x, seed=0), seed=0)


def same_partition(first, second):
    return number_by_first_appearance(list(first)) == number_by_first_appearance(list(second))


@pytest.mark.parametrize("true_k", [2, 3, 4, 5])
def test_the_number_of_well_separated_groups_is_found(true_k):
    # Equidistant groups: corners of a simplex, so that inertia falls in equal steps down to true_k.
    x = np.repeat(np.eye(true_k, 40) * 10, 3, axis=0)
    x = x + 0.01 * np.random.default_rng(0).normal(size=x.shape)
    assert determine_optimal_clusters(x, seed=0)[0] == true_k


def test_four_departments_can_have_three_clusters():
    # A pair and two loners, all far apart and equidistant.
    x = np.array([[10.0, 0.0, 0.0], [10.1, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]])
    assert determine_optimal_clusters(x, seed=0)[0] == 3


def test_inertias_run_from_one_to_max_plus_one():
    x = np.random.default_rng(0).normal(size=(9, 4))
    _, inertias = determine_optimal_clusters(x, 2, 5, seed=0)
    assert list(inertias) == [1, 2, 3, 4, 5, 6]
    assert list(inertias.values()) == sorted(inertias.values(), reverse=True)


def test_inertias_are_clamped_to_the_number_of_rows():
    _, inertias = determine_optimal_clusters(np.array([[0.0], [1.0], [5.0]]), seed=0)
    # k=1: scatter 14; k=2: {0, 1} and {5} leave 2 · 0.5² = 0.5; k=3: 0
    assert inertias == {1: pytest.approx(14.0), 2: pytest.approx(0.5), 3: 0.0}


@pytest.mark.parametrize("shape", [(4, 1), (4, 1000), (7, 3)])
def test_identical_rows_are_one_cluster(shape):
    x = np.tile(np.random.default_rng(0).normal(size=shape[1]), (shape[0], 1))
    assert determine_optimal_clusters(x, seed=0)[0] == 1


def test_all_zero_rows_are_one_cluster():
    assert determine_optimal_clusters(np.zeros((4, 6)), seed=0)[0] == 1


@pytest.mark.parametrize("features", [2, 300])
def test_never_more_clusters_than_distinct_rows(features):
    two = np.random.default_rng(0).normal(size=(2, features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        n_clusters, inertias = determine_optimal_clusters(np.repeat(two, 4, axis=0), 3, 5, seed=0)
    assert n_clusters == 2
    assert inertias[2] == 0.0


def test_a_single_row_is_one_cluster():
    assert determine_optimal_clusters(np.ones((1, 5)), seed=0) == (1, {1: 0.0})


def test_two_distinct_rows_are_two_clusters_under_min_two():
    assert determine_optimal_clusters(np.array([[0.0], [1.0]]), seed=0)[0] == 2


@pytest.mark.parametrize(
    "x", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan]]), np.array([[np.inf, 0.0], [0.0, 0.0]])]
)
def test_x_that_is_no_finite_matrix_is_refused(x):
    with pytest.raises(ValueError) as caught:
        determine_optimal_clusters(x, seed=0)
    assert "x: expected a finite (n, d) matrix" in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3), (-1, -1)])
def test_bounds_out_of_order_are_refused(low, high):
    with pytest.raises(
        ValueError, match=f"expected 1 ≤ min_clusters ≤ max_clusters, got min_clusters {low}, max_clusters {high}"
    ):
        determine_optimal_clusters(np.eye(4), low, high, seed=0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 12))
def test_answer_is_within_bounds_and_at_most_the_distinct_rows(seed, rows, features):
    x = np.random.default_rng(seed).integers(0, 3, size=(rows, features)).astype(float)
    n_clusters, _ = determine_optimal_clusters(x, 2, 4, seed=0, n_init=2)
    distinct = len(np.unique(x, axis=0))
    assert min(2, distinct) <= n_clusters <= min(4, distinct)


def test_every_inertia_is_that_of_scikit_learn_on_the_raw_matrix():
    x = blobs(4, 30, 600, spread=2.0).astype(np.float32)
    n_clusters, inertias = determine_optimal_clusters(x, seed=0)
    raw = {k: KMeans(k, n_init=10, random_state=0).fit(x.astype(np.float64)).inertia_ for k in range(1, 7)}
    assert n_clusters == sharpest_bend(raw, 2, 5) == 4
    for k, inertia in inertias.items():
        assert inertia <= raw[k] * (1 + 1e-6) if k > 4 else inertia == pytest.approx(raw[k], rel=1e-9)


def test_infinity_in_the_last_block_is_refused():
    x = np.zeros((3, 5000), dtype=np.float32)
    x[1, -1] = np.inf
    with pytest.raises(ValueError, match=r"expected a finite \(n, d\) matrix, got shape \(3, 5000\)"):
        determine_optimal_clusters(x, seed=0)


def test_many_rows_are_clustered_after_a_random_projection(monkeypatch, caplog):
    x = blobs(3, 10, 4000, spread=1.0).astype(np.float32)
    exact, exact_inertias = determine_optimal_clusters(x, seed=0)
    monkeypatch.setattr(dissimilarity, "EXACT_ROWS", 20)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        result = cluster_rows(x)
    features = f"4000 features → {projection_size(30)}: squared distances within 1 ± 0.25"
    expected = f"clustering 30 rows after a random projection, {features}"
    assert expected in caplog.text
    assert result.n_clusters == exact == 3
    assert same_partition(result.assignments.values(), np.repeat([0, 1, 2], 10))
    assert result.cosine is None
    for k in range(1, 4):
        assert result.inertias[k] == pytest.approx(exact_inertias[k], rel=0.25)


def test_identical_rows_are_one_cluster_after_a_random_projection_too(monkeypatch):
    monkeypatch.setattr(dissimilarity, "EXACT_ROWS", 20)
    two = np.random.default_rng(0).standard_normal((2, 3000), dtype=np.float32) + 5
    assert determine_optimal_clusters(np.tile(two[:1], (41, 1)), seed=0)[0] == 1
    assert determine_optimal_clusters(np.tile(two, (41, 1)), 3, 5, seed=0)[0] == 2


@pytest.mark.parametrize("shape", [(8, 500), (8, 4)])
def test_one_reduction_and_one_kmeans_for_each_k(monkeypatch, shape):
    calls = []
    for module, name in ((dissimilarity, "gram_matrices"), (kmeans, "kmeans")):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, inner=inner, name=name, **k: calls.append(name) or inner(*a, **k))
    determine_optimal_clusters(np.random.default_rng(0).normal(size=shape), 2, 5, seed=0)
    assert calls == ["gram_matrices"] + ["kmeans"] * 6


def test_labels_are_those_of_the_chosen_number():
    x = blobs(3, 4, 100)
    result = cluster_rows(x)
    assert result.n_clusters == 3
    assert same_partition(result.assignments.values(), np.repeat([0, 1, 2], 4))


def test_many_rows_of_few_features_need_no_random_projection(monkeypatch, caplog):
    monkeypatch.setattr(dissimilarity, "EXACT_ROWS", 20)
    x = blobs(3, 10, 5)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        result = cluster_rows(x)
    assert "projection" not in caplog.text
    assert list(result.inertias.values()) == pytest.approx(
        [KMeans(k, n_init=10, random_state=0).fit(x).inertia_ for k in range(1, 7)]
    )
