import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.linalg.client_matrix import gram_matrix, squared_distances


def test_inner_products_go_over_all_tensors():
    residuals = {
        "a": {"x": torch.tensor([[1.0, 2.0]]), "y": torch.tensor(3.0)},
        "b": {"x": torch.tensor([[4.0, 5.0]]), "y": torch.tensor(-6.0)},
    }
    # 1 + 4 + 9, 4 + 10 − 18, 16 + 25 + 36
    assert gram_matrix(residuals, ["a", "b"]).tolist() == [[14.0, -4.0], [-4.0, 77.0]]
    assert gram_matrix(residuals, ["b", "a"]).tolist() == [[77.0, -4.0], [-4.0, 14.0]]


def test_it_is_what_flat_vectors_give(department):
    residuals = department()
    flat = np.stack([np.concatenate([t.double().numpy().ravel() for t in s.values()]) for s in residuals.values()])
    gram = gram_matrix(residuals, list(residuals))
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-13, atol=1e-13)
    assert (gram == gram.T).all()
    wanted = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(gram), wanted, rtol=1e-12, atol=1e-12)


def test_one_huge_update_costs_the_others_no_digit(department):
    residuals = department()
    few = gram_matrix(residuals, ["hr/a", "hr/b"])
    residuals["hr/h"] = {n: t * 1e30 for n, t in residuals["hr/h"].items()}
    np.testing.assert_allclose(gram_matrix(residuals, ["hr/a", "hr/b", "hr/h"])[:2, :2], few, rtol=1e-15)


def test_fp32s_largest_numbers_do_not_overflow():
    largest = torch.finfo(torch.float32).max
    gram = gram_matrix({"a": {"x": torch.full((100,), largest)}, "b": {"x": torch.full((100,), -largest)}}, ["a", "b"])
    assert np.isfinite(squared_distances(gram)).all()


def test_one_update_twice_is_no_distance_apart():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    gram = gram_matrix({"a": {"x": x}, "b": {"x": torch.ones(1000)}, "c": {"x": x.clone()}}, ["a", "b", "c"])
    assert squared_distances(gram)[0, 2] == 0
    assert squared_distances(gram)[0, 1] > 0


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
def test_distances_are_symmetric_and_never_negative(rows):
    residuals = {str(i): {"x": torch.tensor(row)} for i, row in enumerate(rows)}
    squared = squared_distances(gram_matrix(residuals, sorted(residuals)))
    assert (squared >= 0).all()
    assert (squared == squared.T).all()
    assert (squared.diagonal() == 0).all()
    flat = np.array(rows)
    assert squared == pytest.approx(((flat[:, None] - flat[None]) ** 2).sum(axis=2), rel=1e-9, abs=1e-5)
