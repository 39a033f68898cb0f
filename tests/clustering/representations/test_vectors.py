import logging
import math
import tracemalloc

import numpy as np
import pytest
import torch

from fl_lightning.clustering.representations.vectors import cosine_similarity, represent, stack_rows

A, A2, B = "q.lora_A.weight", "v.lora_A.weight", "q.lora_B.weight"


def state(*values):
    return {A: torch.tensor([list(values)])}


def random_a(seed, rank=2, width=6):
    return torch.randn(rank, width, generator=torch.Generator().manual_seed(seed))


def test_raw_is_a_itself_in_sorted_department_order():
    x = represent({"ops": state(3.0, 4.0), "hr": state(1.0, 2.0)}, "raw")
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert x.dtype == np.float64


def test_only_the_a_matrices_count():
    states = {"hr": {**state(1.0), B: torch.tensor([100.0])}, "ops": {**state(1.0), B: torch.tensor([-7.0])}}
    assert represent(states, "raw").tolist() == [[1.0], [1.0]]


def test_delta_is_the_unit_direction_from_the_shared_start():
    # (4, 6) − (1, 2) = (3, 4), of length 5
    x = represent({"hr": state(4.0, 6.0)}, "delta", state(1.0, 2.0))
    np.testing.assert_allclose(x, [[0.6, 0.8]], rtol=1e-12)


def test_delta_runs_over_all_layers_at_once():
    # Layers move by 3 and 4: together the unit vector (0.6, 0.8), not one unit vector a layer.
    states = {"hr": {A: torch.tensor([[3.0]]), A2: torch.tensor([[4.0]])}}
    start = {A: torch.zeros(1, 1), A2: torch.zeros(1, 1)}
    np.testing.assert_allclose(represent(states, "delta", start), [[0.6, 0.8]], rtol=1e-12)


def test_delta_does_not_see_how_far_a_department_moved():
    start, way = random_a(0), random_a(1)
    states = {"far": {A: start + 2.0 * way}, "near": {A: start + 0.5 * way}}
    x = represent(states, "delta", {A: start})
    np.testing.assert_allclose(x[0], x[1], atol=1e-5)


def test_delta_is_the_default():
    assert represent({"hr": state(0.0, 5.0)}, reference=state(0.0, 0.0)).tolist() == [[0.0, 1.0]]


def test_an_unmoved_department_is_finite_and_told_in_the_log(caplog):
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        x = represent({"hr": state(1.0, 2.0), "ops": state(1.0, 3.0)}, "delta", state(1.0, 2.0))
    assert x.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert "hr has not moved" in caplog.text
    assert "ops" not in caplog.text


def test_moved_departments_are_not_mentioned(caplog):
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        represent({"hr": state(1.0, 2.5)}, "delta", state(1.0, 2.0))
    assert caplog.text == ""


def test_delta_without_reference_is_refused():
    with pytest.raises(ValueError, match="'delta' needs reference, the shared start state; got None"):
        represent({"hr": state(1.0)}, "delta")


def test_an_unknown_representation_is_refused():
    with pytest.raises(ValueError, match="representation: got 'cosine', wanted 'delta', 'raw' or 'subspace'"):
        represent({"hr": state(1.0)}, "cosine")


def test_subspace_does_not_see_a_change_of_basis():
    # (B G⁻¹, G A) is the same model: the rows of G A span what the rows of A span.
    a, g = random_a(0), torch.tensor([[2.0, 1.0], [-3.0, 0.5]])
    x = represent({"hr": {A: a}, "ops": {A: g @ a}}, "subspace")
    np.testing.assert_allclose(x[0], x[1], atol=1e-6)


def test_subspace_inner_product_is_the_mean_squared_cosine_of_principal_angles():
    # Rows span (e1, e2) and (e1, e3): one shared direction of two, so 1/2; with itself 1.
    first, second = torch.eye(4)[[0, 1]], torch.eye(4)[[0, 2]]
    x = represent({"a": {A: first}, "b": {A: second}}, "subspace")
    np.testing.assert_allclose(x @ x.T, [[1.0, 0.5], [0.5, 1.0]], atol=1e-12)


def test_subspace_averages_over_layers():
    # Layer q: equal spaces (1), layer v: orthogonal spaces (0); their mean is 1/2.
    e = torch.eye(3)
    states = {"a": {A: e[[0]], A2: e[[1]]}, "b": {A: e[[0]], A2: e[[2]]}}
    x = represent(states, "subspace")
    np.testing.assert_allclose(x @ x.T, [[1.0, 0.5], [0.5, 1.0]], atol=1e-12)


def test_cosine_by_hand():
    # (1, 0) and (1, 1): 1/√2; (1, 0) and (−2, 0): −1; (1, 1) and (−2, 0): −1/√2
    x = np.array([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    cosine = cosine_similarity(x @ x.T)
    h = 1 / math.sqrt(2)
    np.testing.assert_allclose(cosine, [[1, h, -1], [h, 1, -h], [-1, -h, 1]], atol=1e-12)


def test_cosine_of_a_zero_row_is_finite():
    # Inner products of (0, 0) and (3, 4).
    assert cosine_similarity(np.array([[0.0, 0.0], [0.0, 25.0]])).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_cosine_stays_in_range_and_symmetric():
    x = np.random.default_rng(0).normal(size=(5, 3))
    x = np.concatenate([x, x * 1e-3])
    cosine = cosine_similarity(x @ x.T)
    assert cosine.max() <= 1.0
    assert cosine.min() >= -1.0
    np.testing.assert_allclose(cosine, cosine.T, atol=1e-15)


def test_a_zero_row_among_others_is_told_from_rounding():
    # (0, 0) has inner product 1e-17 with itself after rounding.
    cosine = cosine_similarity(np.array([[1e-17, 1e-16], [1e-16, 1.0]]))
    assert cosine.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_rows_are_stacked_in_the_wanted_precision():
    x = stack_rows((np.array([float(i), 0.1]) for i in range(3)), 3)
    assert x.dtype == np.float32
    assert x.tolist() == [[0.0, np.float32(0.1)], [1.0, np.float32(0.1)], [2.0, np.float32(0.1)]]


@pytest.mark.parametrize("representation", ["delta", "raw"])
def test_one_matrix_is_held(representation):
    # Pages of torch tensors are not traced, NumPy's are: the fp32 matrix has 16 MB, a row in fp64 0.4 MB.
    states = {f"{i:02d}": {A: random_a(i, 5, 10_000)} for i in range(80)}
    tracemalloc.start()
    try:
        x = represent(states, representation, {A: random_a(99, 5, 10_000)}, dtype=np.float32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.dtype == np.float32
    assert peak < 1.2 * x.nbytes


def test_delta_in_fp32_is_the_fp64_one_rounded_once():
    states = {"hr": {A: random_a(0)}, "ops": {A: random_a(1)}}
    wide = represent(states, "delta", {A: random_a(2)})
    assert np.array_equal(represent(states, "delta", {A: random_a(2)}, dtype=np.float32), wide.astype(np.float32))
