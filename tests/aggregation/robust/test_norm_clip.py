import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.aggregation.robust.norm_clip import norm_clip
from fl_lightning.aggregation.robust.result import weighted_center
from fl_lightning.state import norm


def residuals(*norms):
    return {f"hr/{i}": {"x": torch.tensor([0.6 * n]), "y": torch.tensor([[-0.8 * n]])} for i, n in enumerate(norms)}


def scales(*norms, **options):
    found = norm_clip(residuals(*norms), {f"hr/{i}": 1.0 + i for i in range(len(norms))}, **options)
    assert found.weights == {f"hr/{i}": 1.0 + i for i in range(len(norms))}
    assert not found.rejected
    return list(found.scales.values())


def test_longer_updates_are_scaled_to_the_norm():
    # 2 / 1 → 1, 2 / 2 → 1, 2 / 8, 2 / 5
    assert scales(1.0, 2.0, 8.0, 5.0, max_norm=2.0) == pytest.approx([1.0, 1.0, 0.25, 0.4], rel=1e-7)


def test_without_a_norm_it_is_the_median_of_the_round():
    assert scales(1.0, 2.0, 8.0) == pytest.approx([1.0, 1.0, 0.25], rel=1e-7)
    assert scales(1.0, 2.0, 4.0, 30.0) == pytest.approx([1.0, 1.0, 0.75, 0.1], rel=1e-7)  # (2 + 4) / 2


def test_two_tensors_are_one_vector():
    update = {"hr/a": {"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}}
    assert norm_clip(update, {"hr/a": 1.0}, max_norm=2.5).scales == {"hr/a": 0.5}


def test_zero_updates_are_not_scaled():
    assert scales(0.0, 1.0, max_norm=0.5) == pytest.approx([1.0, 0.5], rel=1e-7)


def test_where_most_send_zero_nobody_may_move():
    assert scales(0.0, 0.0, 3.0) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_norm_that_is_not_positive_is_refused(value):
    with pytest.raises(ValueError, match=f"max_norm: expected a positive finite number or null, got {value}"):
        norm_clip(residuals(1.0), {"hr/0": 1.0}, max_norm=value)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_the_centre_is_never_longer_than_the_norm(norms, most):
    given_ = residuals(*norms)
    found = norm_clip(given_, {c: 1.0 + i for i, c in enumerate(given_)}, max_norm=most)
    assert norm(weighted_center(given_, found)) <= most * (1 + 1e-12)
