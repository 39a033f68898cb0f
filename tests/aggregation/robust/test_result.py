import pytest
import torch

from fl_lightning.aggregation.robust import Selection, weighted_center
from fl_lightning.flora import flora_weighted_aggregate


def residuals(**values):
    return {c: {"x": torch.tensor([v])} for c, v in values.items()}


def test_scales_shorten_updates_but_not_the_sum_of_weights():
    # (1·1·2 + 3·0.5·4) / (1 + 3) = 8 / 4
    found = weighted_center(residuals(a=2.0, b=4.0), Selection({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 0.5}))
    assert found["x"].item() == 2.0
    assert found["x"].dtype == torch.float64


def test_those_left_out_are_neither_read_nor_counted():
    found = weighted_center({**residuals(a=2.0), "b": None}, Selection({"a": 1.0}, {"a": 1.0}, {"b": "why"}))
    assert found["x"].item() == 2.0


def test_a_client_that_is_scaled_to_nothing_still_has_its_weight():
    found = weighted_center(residuals(a=2.0, b=4.0), Selection({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 0.0}))
    assert found["x"].item() == 0.5


def test_all_scaled_to_nothing_is_zero():
    found = weighted_center(residuals(a=2.0, b=4.0), Selection({"a": 1.0, "b": 3.0}, {"a": 0.0, "b": 0.0}))
    assert found["x"].tolist() == [0.0]


def test_without_scales_it_is_the_mean_of_flora(department):
    weights = {c: 1.0 + i for i, c in enumerate(department())}
    found = weighted_center(department(), Selection(weights, dict.fromkeys(weights, 1.0)))
    mean = flora_weighted_aggregate([(state, weights[c]) for c, state in department().items()])
    assert all(torch.equal(found[name].float(), mean[name]) for name in mean)


def test_nobody_is_refused():
    with pytest.raises(ValueError, match="expected at least one client with a weight"):
        weighted_center(residuals(a=1.0), Selection({}, {}, {"a": "why"}))


def test_a_selection_does_not_change():
    with pytest.raises(AttributeError):
        Selection({}, {}).weights = {}
