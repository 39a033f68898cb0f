import logging
import tracemalloc

import numpy as np
import pytest
import torch

from fl_lightning.clustering.dissimilarity import cosine_similarity
from fl_lightning.clustering.representations import factors
from fl_lightning.clustering.representations.factors import a_vectors, stack_rows

A, A2, B = "q.lora_A.weight", "v.lora_A.weight", "q.lora_B.weight"


def state(*values):
    return {A: torch.tensor([list(values)])}


def random_a(seed, rank=2, width=6):
    return torch.randn(rank, width, generator=torch.Generator().manual_seed(seed))


def random_states(n=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    start = {A: torch.randn(2, 8, generator=draw), A2: torch.randn(3, 5, generator=draw)}
    return start, {
        f"d{i}": {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in start.items()} for i in range(n)
    }


def test_raw_is_the_euclidean_distance_of_a():
    _, states = random_states()
    x = a_vectors(states)
    expected = np.linalg.norm(x[:, None] - x[None, :], axis=2)
    np.testing.assert_allclose(factors.raw(states).distance, expected, rtol=1e-6)
    np.testing.assert_allclose(factors.raw(states).gram, x @ x.T, rtol=1e-6)


def test_delta_is_the_cosine_of_moves():
    start, states = random_states()
    x = a_vectors(states, start)
    dissimilarity = factors.delta(states, reference=start)
    np.testing.assert_allclose(dissimilarity.gram, cosine_similarity(x @ x.T), atol=1e-6)
    np.testing.assert_allclose(dissimilarity.dissimilarity, 1 - x @ x.T, atol=1e-6)


def test_b_does_not_count():
    start, states = random_states()
    with_b = {name: {**state, B: torch.randn(4, 2)} for name, state in states.items()}
    np.testing.assert_array_equal(
        factors.delta(with_b, reference={**start, B: torch.zeros(4, 2)}).gram,
        factors.delta(states, reference=start).gram,
    )


def test_who_has_not_moved_is_a_zero_vector():
    start, states = random_states(2)
    dissimilarity = factors.delta({**states, "still": start}, reference=start)
    np.testing.assert_allclose(dissimilarity.gram[2], 0, atol=1e-12)
    np.testing.assert_allclose(dissimilarity.dissimilarity[2], [0.5, 0.5, 0.0], atol=1e-6)


def test_mixed_ranks_are_refused_with_a_hint():
    states = {"hr": {A: torch.ones(2, 4)}, "it": {A: torch.ones(3, 4)}}
    with pytest.raises(
        ValueError,
        match=r"raw and delta compare .* shape .*; 'subspace' and 'product' allow",
    ):
        factors.raw(states)


def test_states_without_a_are_refused():
    with pytest.raises(ValueError, match="hr: expected a lora_A among its tensors"):
        factors.raw({"hr": {B: torch.ones(2, 2)}})
    with pytest.raises(ValueError, match="states: expected at least one"):
        factors.raw({})
    with pytest.raises(ValueError, match="it: expected the same tensors as hr; v.lora_A.weight"):
        factors.raw({"hr": {A: torch.ones(1, 2)}, "it": {A: torch.ones(1, 2), A2: torch.ones(1, 2)}})


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        factors.raw({"hr": {A: torch.tensor([[float("nan")]])}, "it": {A: torch.ones(1, 1)}})


def test_raw_is_a_itself_in_sorted_department_order():
    x = a_vectors({"ops": state(3.0, 4.0), "hr": state(1.0, 2.0)})
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert x.dtype == np.float32


def test_only_the_a_matrices_count():
    states = {"hr": {**state(1.0), B: torch.tensor([100.0])}, "ops": {**state(1.0), B: torch.tensor([-7.0])}}
    assert a_vectors(states).tolist() == [[1.0], [1.0]]


def test_delta_is_the_unit_direction_from_the_shared_start():
    # (4, 6) − (1, 2) = (3, 4), of length 5
    x = a_vectors({"hr": state(4.0, 6.0)}, state(1.0, 2.0))
    np.testing.assert_allclose(x, [[0.6, 0.8]], rtol=1e-7)


def test_delta_runs_over_all_layers_at_once():
    # Layers move by 3 and 4: together the unit vector (0.6, 0.8), not one unit vector a layer.
    states = {"hr": {A: torch.tensor([[3.0]]), A2: torch.tensor([[4.0]])}}
    start = {A: torch.zeros(1, 1), A2: torch.zeros(1, 1)}
    np.testing.assert_allclose(a_vectors(states, start), [[0.6, 0.8]], rtol=1e-7)


def test_delta_does_not_see_how_far_a_department_moved():
    start, way = random_a(0), random_a(1)
    states = {"far": {A: start + 2.0 * way}, "near": {A: start + 0.5 * way}}
    x = a_vectors(states, {A: start})
    np.testing.assert_allclose(x[0], x[1], atol=1e-5)


def test_a_vector_along_an_axis_is_exact():
    assert a_vectors({"hr": state(0.0, 5.0)}, state(0.0, 0.0)).tolist() == [[0.0, 1.0]]


def test_an_unmoved_department_is_finite_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        x = a_vectors({"hr": state(1.0, 2.0), "ops": state(1.0, 3.0)}, state(1.0, 2.0))
    assert x.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert "hr has not moved" in caplog.text
    assert "ops" not in caplog.text


def test_moved_departments_are_not_mentioned(caplog):
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        a_vectors({"hr": state(1.0, 2.5)}, state(1.0, 2.0))
    assert caplog.text == ""


def test_rows_are_stacked_in_the_stated_precision():
    x = stack_rows((np.array([float(i), 0.1]) for i in range(3)), 3)
    assert x.dtype == np.float32
    assert x.tolist() == [[0.0, np.float32(0.1)], [1.0, np.float32(0.1)], [2.0, np.float32(0.1)]]


@pytest.mark.parametrize("delta", [True, False])
def test_one_matrix_is_held(delta):
    # Pages of torch tensors are not traced, NumPy's are: the fp32 matrix has 16 MB, a row in fp64 0.4 MB.
    states = {f"{i:02d}": {A: random_a(i, 5, 10_000)} for i in range(80)}
    tracemalloc.start()
    try:
        x = a_vectors(states, {A: random_a(99, 5, 10_000)} if delta else None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.dtype == np.float32
    assert peak < 1.2 * x.nbytes


def test_delta_in_fp32_is_the_fp64_one_rounded_once():
    states = {"hr": {A: random_a(0)}, "ops": {A: random_a(1)}}
    moves = np.stack([(s[A].double() - random_a(2).double()).flatten().numpy() for s in states.values()])
    exact = moves / [[np.linalg.norm(move)] for move in moves]
    assert np.array_equal(a_vectors(states, {A: random_a(2)}), exact.astype(np.float32))
