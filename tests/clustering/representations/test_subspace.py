import tracemalloc

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from fl_lightning.clustering import department_level_clustering, determine_optimal_clusters
from fl_lightning.clustering.representations import subspace

A, A2 = "q.lora_A.weight", "v.lora_A.weight"
WIDTH = 9


def random_a(seed, rank=2, width=WIDTH):
    return torch.randn(rank, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(first, second):
    """Mean squared cosine of the principal angles, min(r_i, r_j) of them."""
    return float((np.cos(subspace_angles(first.numpy().T, second.numpy().T)) ** 2).mean())


def test_it_is_one_less_the_mean_squared_cosine_of_the_principal_angles():
    states = {f"d{i}": {A: random_a(i), A2: random_a(10 + i, rank=3)} for i in range(3)}
    d = subspace.subspace(states).dissimilarity
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        first, second = states[f"d{i}"], states[f"d{j}"]
        assert d[i, j] == pytest.approx(1 - (angles(first[A], second[A]) + angles(first[A2], second[A2])) / 2)


def test_it_is_the_kernel_of_projectors_where_ranks_are_equal():
    states = {f"d{i}": {A: random_a(i), A2: random_a(10 + i, rank=3)} for i in range(4)}
    gram = np.zeros((4, 4))
    for layer, rank in ((A, 2), (A2, 3)):
        projectors = [np.linalg.pinv(state[layer].numpy()) @ state[layer].numpy() for state in states.values()]
        x = np.array([projector.ravel() for projector in projectors])
        gram += x @ x.T / rank / 2
    np.testing.assert_allclose(subspace.subspace(states).gram, gram, atol=1e-12)


def test_a_change_of_basis_does_not_show():
    states = {f"d{i}": {A: random_a(i, rank=3)} for i in range(3)}
    turned = {name: {A: random_a(50 + i, 3, 3) @ state[A]} for i, (name, state) in enumerate(states.items())}
    result, expected = subspace.subspace(turned), subspace.subspace(states)
    np.testing.assert_allclose(result.dissimilarity, expected.dissimilarity, atol=1e-9)
    start = {A: random_a(99, rank=3)}
    np.testing.assert_allclose(
        subspace.subspace_residual(turned, reference=start).dissimilarity,
        subspace.subspace_residual(states, reference=start).dissimilarity,
        atol=1e-9,
    )


def test_mixed_ranks_go_by_the_smaller_one_and_are_no_kernel():
    states = {f"d{i}": {A: random_a(i, rank)} for i, rank in enumerate([1, 2, 4])}
    dissimilarity = subspace.subspace(states)
    assert dissimilarity.gram is None
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert dissimilarity.dissimilarity[i, j] == pytest.approx(1 - angles(states[f"d{i}"][A], states[f"d{j}"][A]))


def test_a_line_is_at_no_distance_from_a_plane_that_holds_it():
    states = {"line": {A: torch.eye(4)[:1]}, "plane": {A: torch.eye(4)[:2]}}
    np.testing.assert_allclose(subspace.subspace(states).dissimilarity, 0, atol=1e-12)


def test_dependent_rows_count_once():
    states = {"hr": {A: torch.tensor([[1.0, 0, 0], [2.0, 0, 0]])}, "it": {A: torch.tensor([[0.0, 1, 0], [3.0, 0, 0]])}}
    assert subspace.subspace(states).dissimilarity[0, 1] == pytest.approx(0, abs=1e-12)  # a line in a plane


def test_residual_is_the_subspace_of_what_is_beyond_the_start():
    start, states = random_a(0), {f"d{i}": {A: random_a(0) + 0.1 * random_a(i)} for i in range(1, 4)}
    projector = torch.linalg.pinv(start) @ start
    beyond = {
        name: {A: state[A] @ (torch.eye(WIDTH, dtype=torch.float64) - projector)} for name, state in states.items()
    }
    np.testing.assert_allclose(
        subspace.subspace_residual(states, reference={A: start}).dissimilarity,
        subspace.subspace(beyond).dissimilarity,
        atol=1e-9,
    )


def test_residual_sees_what_the_start_hides():
    # a and b add the same direction, c another one; plain subspaces are all nearly the start's.
    start = random_a(0, width=200).float()
    one, two = random_a(1, width=200).float(), random_a(2, width=200).float()
    states = {"a": {A: start + 0.01 * one}, "b": {A: start + 0.02 * one}, "c": {A: start + 0.01 * two}}
    assert subspace.subspace(states).dissimilarity.max() < 0.01
    d = subspace.subspace_residual(states, reference={A: start}).dissimilarity
    assert d[0, 1] < 0.01
    assert d[0, 2] > 0.9


def test_an_unmoved_layer_spans_nothing_beyond_the_start():
    # in fp32 even: what is left of A (I − P₀) is rounding, and half the distance of orthogonal subspaces
    start = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    other = torch.Generator().manual_seed(1)
    states = {
        "moved": {A: start + 0.1 * torch.randn(4, 64, generator=other)},
        "still": {A: start},
        "turned": {A: 3 * start.flip(0)},
    }
    dissimilarity = subspace.subspace_residual(states, reference={A: start})
    np.testing.assert_allclose(dissimilarity.gram, np.diag([1.0, 0.0, 0.0]), atol=1e-12)
    np.testing.assert_allclose(dissimilarity.dissimilarity[1], [0.5, 0.0, 0.0], atol=1e-12)


def test_identical_states_are_one_point():
    assert subspace.subspace({name: {A: random_a(3).float()} for name in "abc"}).distinct == 1


def test_half_precision_is_compared_too():
    states = {"hr": {A: random_a(1).bfloat16()}, "it": {A: random_a(1).float()}}
    assert subspace.subspace(states).dissimilarity[0, 1] < 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="it: q.lora_A.weight: expected 3 columns as in the others, got 4"):
        subspace.subspace({"hr": {A: torch.ones(1, 3)}, "it": {A: torch.ones(1, 4)}})
    with pytest.raises(ValueError, match="hr: q.lora_A.weight: expected 3 columns as in the others, got 4"):
        subspace.subspace_residual({"hr": {A: torch.ones(1, 4)}}, reference={A: torch.ones(1, 3)})
    with pytest.raises(
        ValueError, match="reference: expected the shared start of all A-matrices, got none of q.lora_A.weight"
    ):
        subspace.subspace_residual({"hr": {A: torch.ones(1, 4)}}, reference={})
    with pytest.raises(ValueError, match=r"hr: q.lora_A.weight: expected shape \(r, in_features\), got \(4,\)"):
        subspace.subspace({"hr": {A: torch.ones(4)}})
    with pytest.raises(ValueError, match="it: q.lora_A.weight: not finite"):
        subspace.subspace({"hr": {A: torch.ones(1, 1)}, "it": {A: torch.tensor([[float("inf")]])}})


def test_bases_are_compared_without_matrices_of_in_features_squared():
    states = {f"d{i}": {A: random_a(i, rank=8, width=2048).float()} for i in range(4)}
    department_level_clustering(states, seed=0)  # imports scikit-learn, which is not to be counted
    tracemalloc.start()
    try:
        clusters, _ = department_level_clustering(states, representation="subspace", seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(map(len, clusters.values())) == 4
    assert peak < 2048 * 2048 * 4 / 4  # a projector has 16 MiB in fp32, the bases of all departments 0.5 MiB


def test_clusters_and_inertias_are_those_of_the_dense_projectors():
    # a and b share a plane, c and d another one; each turned a little.
    planes = {name: random_a(i // 2, rank=2, width=12) + 0.1 * random_a(10 + i, 2, 12) for i, name in enumerate("abcd")}
    projectors = np.array([(np.linalg.pinv(a.numpy()) @ a.numpy()).ravel() / 2**0.5 for a in planes.values()])
    states = {name: {A: a} for name, a in planes.items()}
    result = department_level_clustering(states, representation="subspace", seed=0)
    k, inertias = determine_optimal_clusters(projectors, seed=0)
    assert result[0] == {0: ["a", "b"], 1: ["c", "d"]}
    assert (len(result[0]), result.clustering.inertias) == (k, pytest.approx(inertias, abs=1e-12))
    np.testing.assert_allclose(result.clustering.cosine, projectors @ projectors.T, atol=1e-12)
