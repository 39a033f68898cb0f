import dataclasses
import json

import numpy as np
import pytest
import torch

from fl_lightning import clustering
from fl_lightning.clustering.dissimilarity import EXACT_ROWS
from fl_lightning.clustering.rounds import ClusteringInputs, cluster_clients, cluster_round
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig

A, B = "w.lora_A.weight", "w.lora_B.weight"
TRUTH = {"hr": 0, "law": 0, "ops": 1, "it": 1, "lab": 2}


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def round_inputs(seed=0, clients=4, noise=1.0, strength=3.0, same=False, **others):
    """Five departments in three groups: each client moved in its group's direction, plus noise."""
    start = {A: draw(99, 4, 60), B: torch.zeros(5, 4)}
    directions = {group: (draw(200 + group, 4, 60), draw(300 + group, 5, 4)) for group in range(3)}
    moves, weights = {}, {}
    for number, (department, group) in enumerate(sorted(TRUTH.items())):
        for client in range(clients):
            down, up = directions[0 if same else group]
            client_seed = 10_000 * seed + 100 * number + client
            moves[f"{department}/{client}"] = {
                A: start[A] + strength * down + noise * 3 * draw(client_seed, 4, 60),
                B: start[B] + strength * up + noise * draw(client_seed + 50, 5, 4),
            }
            weights[f"{department}/{client}"] = 1.0 + client
    states = {}
    for department in TRUTH:
        ids = [c for c in moves if c.startswith(department)]
        total = sum(weights[c] for c in ids)
        states[department] = {n: sum(weights[c] / total * moves[c][n] for c in ids) for n in start}
    return ClusteringInputs(states, start, moves, weights, **others)


def run_round(config, inputs, previous=None, memory=None, seed=3):
    return cluster_round(config, inputs, previous=previous or {}, memory=memory or {}, seed=seed)


def same_groups(assignments, truth=TRUTH):
    pairs = [(a, b) for a in truth for b in truth]
    return all((assignments[a] == assignments[b]) == (truth[a] == truth[b]) for a, b in pairs)


def test_a_round_by_default_is_the_public_function(monkeypatch):
    results, inner = [], clustering.department_level_clustering
    spy = lambda *args, **options: results.append(inner(*args, **options)) or results[-1]  # noqa: E731
    monkeypatch.setattr(clustering, "department_level_clustering", spy)
    inputs = round_inputs()
    result, memory = run_round(DeptClustersConfig(), inputs)
    expected = inner(inputs.states, reference=inputs.reference, seed=3)
    assert [result.assignments] == [assignments for _, assignments in results] == [expected[1]]
    assert (memory, result.quality, result.scores) == ({}, {}, {})
    for field in dataclasses.fields(result):
        np.testing.assert_equal(getattr(result, field.name), getattr(expected.clustering, field.name))


@pytest.mark.parametrize("representation", ["delta", "raw", "subspace", "subspace_residual", "product"])
@pytest.mark.parametrize("method", ["kmeans", "agglomerative", "spectral"])
@pytest.mark.parametrize("select", ["silhouette", "eigengap", "fixed", "dynamic"])
def test_every_choice_finds_what_is_plain_to_see(representation, method, select):
    config = DeptClustersConfig(
        representation=representation, method=method, select=select, min_clusters=3 if select == "fixed" else 2
    )
    inputs = round_inputs(noise=0.3, strength=6.0)
    result, memory = run_round(config, inputs)
    if (representation, select) != ("subspace", "eigengap"):  # row spaces of A are nearly the same for all: no gap
        assert same_groups(result.assignments), result.assignments
    assert set(memory) == ({"clients"} if select == "dynamic" else set())
    assert {"silhouette", "davies_bouldin"} <= result.quality.keys()


def test_losses_between_departments_are_a_relation_too():
    names = sorted(TRUTH)
    losses = np.array([[1.0 if TRUTH[i] == TRUTH[j] else 3.0 for j in names] for i in names])
    inputs = dataclasses.replace(round_inputs(), losses=losses)
    config = DeptClustersConfig(representation="cross_loss", method="agglomerative", select="silhouette")
    assert same_groups(run_round(config, inputs)[0].assignments)


def test_dynamic_says_one_cluster_of_one_pool_and_writes_down_why():
    config = DeptClustersConfig(select="dynamic", method="agglomerative")
    answers = [run_round(config, round_inputs(seed, same=True))[0].n_clusters for seed in range(20)]
    assert answers.count(1) >= 18
    result, _ = run_round(config, round_inputs())
    assert same_groups(result.assignments)
    assert result.p_values[1] <= 0.03
    assert set(result.scores) >= {1, 2, 3}


def test_dynamic_tests_by_the_first_fits_whatever_comes_later():
    config = DeptClustersConfig(select="dynamic", method="agglomerative")
    first, memory = run_round(config, round_inputs(0))
    memory = json.loads(json.dumps(memory))
    later, again = run_round(config, round_inputs(1, same=True), first.assignments, memory)
    assert later.p_values[1] == first.p_values[1]
    assert again["clients"] == memory["clients"]
    one, memory = run_round(config, round_inputs(2, same=True))
    assert one.n_clusters == 1
    assert run_round(config, round_inputs(1), one.assignments, memory)[0].n_clusters == 1
    few = round_inputs(1)
    some = dataclasses.replace(few, states={d: few.states[d] for d in ("hr", "law", "lab")})
    assert set(run_round(config, some, {}, memory)[0].assignments) == {"hr", "law", "lab"}


def test_a_department_without_first_fits_begins_the_account_anew():
    config = DeptClustersConfig(select="dynamic", method="agglomerative")
    whole = round_inputs(0)
    early = [d for d in TRUTH if d != "lab"]
    part = dataclasses.replace(
        whole,
        states={d: whole.states[d] for d in early},
        client_fits={c: m for c, m in whole.client_fits.items() if not c.startswith("lab")},
        client_weights={c: w for c, w in whole.client_weights.items() if not c.startswith("lab")},
    )
    _, memory = run_round(config, part)
    result, memory = run_round(config, whole, {}, memory)
    assert same_groups(result.assignments)
    assert any(client_id.startswith("lab") for client_id in memory["clients"]["weights"])


def test_numbers_go_on_from_round_to_round():
    config = DeptClustersConfig()
    first, _ = run_round(config, round_inputs())
    turned = {name: 7 + number for name, number in first.assignments.items()}
    second, _ = run_round(config, round_inputs(1), previous=turned)
    assert second.assignments == turned


def test_smoothing_remembers_and_goes_through_json():
    config = DeptClustersConfig(smoothing=0.9, select="silhouette", method="agglomerative")
    _, memory = run_round(config, round_inputs(0))
    plain, _ = run_round(dataclasses.replace(config, smoothing=0.0), round_inputs(1, same=True))
    smoothed, later = run_round(config, round_inputs(1, same=True), memory=json.loads(json.dumps(memory)))
    assert same_groups(smoothed.assignments)
    assert not same_groups(plain.assignments)
    assert later["relation"]["names"] == sorted(TRUTH)


def test_patience_keeps_a_partition_until_another_is_better_twice():
    config = DeptClustersConfig(select="fixed", min_clusters=2, patience=2, method="agglomerative")
    first, memory = run_round(config, round_inputs(0))
    other = round_inputs(1)
    swapped = dataclasses.replace(
        other, states={**other.states, "lab": other.states["it"], "it": other.states["hr"], "ops": other.states["law"]}
    )
    held, memory = run_round(config, swapped, first.assignments, json.loads(json.dumps(memory)))
    assert same_groups(held.assignments, first.assignments)
    assert memory["hysteresis"]["wins"] == 1
    changed, memory = run_round(config, swapped, held.assignments, json.loads(json.dumps(memory)))
    assert not same_groups(changed.assignments, first.assignments)
    assert memory["hysteresis"]["wins"] == 0


@pytest.mark.parametrize(
    "options", [{"method": "spectral"}, {"representation": "subspace"}, {"patience": 2}, {"smoothing": 0.5}]
)
def test_more_departments_than_the_matrices_take_are_refused(options):
    state = {A: torch.ones(1, 1)}
    many = {f"d{i}": state for i in range(EXACT_ROWS + 1)}
    with pytest.raises(ValueError, match=f"expected at most {EXACT_ROWS} departments .*, got {EXACT_ROWS + 1}"):
        run_round(DeptClustersConfig(**options), ClusteringInputs(many, state, {}, {}))


def test_memory_in_checkpoints_of_earlier_versions_is_read():
    config = DeptClustersConfig(select="dynamic", method="agglomerative", smoothing=0.5, patience=2)
    first, memory = run_round(config, round_inputs())
    assert {key: set(memory[key]) for key in memory} == {
        "relation": {"names", "dissimilarity", "gram", "scale"},
        "clients": {"relation", "weights"},
        "hysteresis": {"held", "challenger", "wins", "numbers"},
    }
    assert set(memory["clients"]["relation"]) == {"names", "dissimilarity", "gram", "scale"}
    second, _ = run_round(config, round_inputs(1), first.assignments, json.loads(json.dumps(memory)))
    assert second.assignments == first.assignments


@pytest.mark.parametrize("representation", ["delta", "subspace_residual", "product"])
def test_clients_are_grouped_by_the_same_code(representation):
    start = {A: draw(99, 4, 60), B: torch.zeros(5, 4)}
    clients = {
        f"hr/c{i}": {
            A: start[A] + 3 * draw(200 + i % 2, 4, 60) + 0.1 * draw(i, 4, 60),
            B: draw(300 + i % 2, 5, 4) + 0.1 * draw(50 + i, 5, 4),
        }
        for i in range(6)
    }
    config = ClientClustersConfig(2, 0.2, "agglomerative", representation)
    labels = cluster_clients(config, clients, start, seed=1)
    assert labels == {f"hr/c{i}": i % 2 for i in range(6)}
    assert cluster_clients(ClientClustersConfig(), clients, start, seed=1) is None
