import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from fl_lightning.clustering.dissimilarity import from_gram
from fl_lightning.clustering.sums_of_squares import DepartmentClients, ward_curves, within_cluster_ss

NAMES = ["a", "b", "c", "d"]


def clients_of(x, department_of, weights=None):
    return DepartmentClients(from_gram(sorted(department_of), x @ x.T), department_of, weights)


def test_within_is_the_weighted_squared_distance_from_group_means():
    x = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 1.0]])
    # groups of weights 1 and 3: mean (3, 0), so 1 · 9 + 3 · 1
    assert within_cluster_ss(x, np.array([1.0, 3.0, 2.0]), [5, 5, 2]) == pytest.approx(12)


def test_equal_weights_give_scipys_ward():
    x = np.random.default_rng(0).standard_normal((9, 4))
    losses = linkage(x, "ward")[:, 2] ** 2 / 2  # SciPy's height squared is twice the loss
    result = ward_curves(x[None], np.ones((1, 9)), [0] * 9)
    np.testing.assert_allclose(result[0], np.cumsum(losses[::-1]))


def test_weights_count_as_copies():
    x, copies = np.random.default_rng(1).standard_normal((5, 3)), np.array([1, 3, 2, 1, 4])
    losses = linkage(np.repeat(x, copies, axis=0), "ward")[-4:, 2] ** 2 / 2
    result = ward_curves((x * copies[:, None])[None], copies[None].astype(float), [0] * 5)
    np.testing.assert_allclose(result[0], np.cumsum(losses[::-1]), atol=1e-9)


def test_all_splits_together_explain_all_that_is_between():
    x, groups = np.random.default_rng(2).standard_normal((6, 3)), [0, 1, 0, 1, 0, 2]
    result = ward_curves(x[None], np.ones((1, 6)), groups)
    assert result.shape == (1, 3)
    assert result[0, -1] == pytest.approx(within_cluster_ss(x, np.ones(6), groups))


def test_draws_do_not_mix():
    x = np.random.default_rng(3).standard_normal((7, 6, 3))
    together = ward_curves(x, np.ones((7, 6)), [0] * 6)
    for draw in range(7):
        np.testing.assert_allclose(together[draw], ward_curves(x[draw : draw + 1], np.ones((1, 6)), [0] * 6)[0])


def test_inputs_are_left_alone():
    x, mass = np.random.default_rng(4).standard_normal((1, 4, 2)), np.ones((1, 4))
    before = x.copy()
    ward_curves(x, mass, [0, 0, 0, 0])
    np.testing.assert_array_equal(x, before)
    assert (mass == 1).all()


def test_clients_are_ordered_by_department_and_centred_by_weight():
    x = np.array([[0.0], [1.0], [2.0], [6.0]])
    result = clients_of(x, {"a": "z", "b": "y", "c": "z", "d": "y"}, {"a": 1, "b": 2, "c": 2, "d": 3})
    assert result.departments == ["y", "z"]
    assert result.ordered == ["b", "d", "a", "c"]
    assert result.department_index.tolist() == [0, 0, 1, 1]
    assert result.sizes == [2, 2]
    np.testing.assert_allclose(result.weights, [1, 1.5, 0.5, 1])
    # weighted mean (0 + 2 + 4 + 18) / 8 = 3; points are of either sign
    np.testing.assert_allclose(np.abs(result.points.ravel()), [2, 3, 3, 1])


def test_clients_that_do_not_fit_are_refused():
    dissimilarity = from_gram(["a", "b"], np.eye(2))
    with pytest.raises(ValueError, match="department_of: expected one value for each client compared, b got none"):
        DepartmentClients(dissimilarity, {"a": "x"})
    with pytest.raises(ValueError, match="client_weights: expected one value for each client compared, c got one"):
        DepartmentClients(dissimilarity, {"a": "x", "b": "y"}, {"a": 1, "b": 1, "c": 1})
    for weight in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a positive finite weight for b"):
            DepartmentClients(dissimilarity, {"a": "x", "b": "y"}, {"a": 1, "b": weight})
