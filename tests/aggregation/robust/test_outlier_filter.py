import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.robust.outlier_filter import cosines_to_median_direction, outlier, robust_z


def residuals(*vectors):
    return {f"hr/{i}": {"x": torch.tensor(v)} for i, v in enumerate(vectors)}


def judged(updates, **options):
    found = outlier(updates, {c: 1.0 + i for i, c in enumerate(updates)}, **options)
    assert found.weights == {c: 1.0 + i for i, c in enumerate(updates) if c not in found.rejected}
    assert found.scales == dict.fromkeys(found.weights, 1.0)
    return found.rejected


def test_scores_by_hand():
    # median 30, distances 20 10 0 10 70: MAD 10, spread 14.826
    wanted = [-20 / 14.826, -10 / 14.826, 0.0, 10 / 14.826, 70 / 14.826]
    assert robust_z(np.array([10.0, 20.0, 30.0, 40.0, 100.0])) == pytest.approx(wanted)


def test_equal_norms_have_the_floor_for_a_spread():
    # median 4, MAD 0: a quarter of 4
    assert robust_z(np.array([4.0, 4.0, 4.0, 5.0, 9.0])).tolist() == [0.0, 0.0, 0.0, 1.0, 5.0]


def test_a_long_update_is_left_out_with_its_figures():
    # median 4, spread 1: 12 is 8 above; 10 is 6 above, which is no more than 6
    assert judged(residuals([4.0], [4.0], [4.0], [12.0])) == {
        "hr/3": "norm 12, 8 robust deviations above the median 4, expected at most 6"
    }
    assert not judged(residuals([4.0], [4.0], [4.0], [10.0]))
    assert list(judged(residuals([4.0], [4.0], [4.0], [10.0]), max_z=5.9)) == ["hr/3"]


def test_a_short_update_is_not_left_out():
    assert not judged(residuals([4.0], [4.0], [4.0], [1e-6]))


def test_an_update_the_other_way_is_left_out_with_its_figures():
    assert judged(residuals([1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [-1.0, 0.0])) == {
        "hr/3": "cosine -1.00 to the clients' median direction, expected at least -0.5"
    }


def test_both_failings_are_told():
    why = judged(residuals([1.0], [1.0], [1.0], [-10.0]))["hr/3"]
    assert why == (
        "norm 10, 36 robust deviations above the median 1, expected at most 6; "
        "cosine -1.00 to the clients' median direction, expected at least -0.5"
    )


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "attack", ["negated ten times", "noise of ten times the norm", "copy of another negated", "1e30 times"]
)
def test_exactly_the_attackers_are_left_out(attack, count, attacked):
    for seed in range(20):
        updates, hostile, _ = attacked(attack, count, seed)
        assert set(judged(updates)) == hostile


def test_three_of_eight_that_collude_are_left_out(attacked):
    updates, hostile, _ = attacked("copy of another negated", 3)
    assert set(judged(updates)) == hostile


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_honest_clients_are_not_left_out(spread, department):
    for seed in range(20):
        assert not judged(department(seed, spread))


def test_unrelated_updates_are_not_left_out():
    assert not judged(residuals(*torch.eye(6).tolist()))


@pytest.mark.parametrize("vectors", [[[1.0]], [[1.0], [-900.0]]])
def test_of_one_or_two_nobody_is_judged(vectors):
    assert not judged(residuals(*vectors))


def test_zero_updates_are_neither_judged_nor_compared_with():
    assert not judged(residuals([0.0], [0.0], [0.0], [0.0], [0.0], [1.0], [-900.0]))
    assert list(judged(residuals([0.0], [0.0], [0.0], [0.0], [1.0], [1.0], [900.0]))) == ["hr/6"]


def test_directions_that_cancel_out_judge_nobody():
    assert not judged(residuals([1.0, 0.3], [1.0, 0.3], [-1.0, -0.3], [-1.0, -0.3]))
    assert cosines_to_median_direction(np.array([[1.0, -1.0], [-1.0, 1.0]])).tolist() == [1.0, 1.0]


def test_where_more_than_half_fail_the_worst_go():
    # cosines to the median direction are all below 1: all fail; the long one first, then the lowest cosine
    updates = residuals([1.0, 0.0], [1.0, 0.2], [1.0, -0.3], [9.0, 0.1], [0.8, 0.8])
    assert list(judged(updates, min_cosine=1.0)) == ["hr/3", "hr/4"]


def test_cosines_are_those_of_vectors():
    vectors = np.array([[3.0, 0.0], [0.0, 5.0], [4.0, 4.0], [1.0, 1.0]])
    # directions (1, 0), (0, 1) and twice the diagonal: the diagonal is their median
    wanted = [0.5**0.5, 0.5**0.5, 1.0, 1.0]
    assert cosines_to_median_direction(vectors @ vectors.T) == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=2), min_size=1, max_size=9),
    st.floats(-1, 1),
    st.floats(0.01, 10),
)
def test_never_more_than_half_are_left_out(vectors, min_cosine, max_z):
    assert len(judged(residuals(*vectors), min_cosine=min_cosine, max_z=max_z)) <= len(vectors) // 2


@pytest.mark.parametrize(("option", "value"), [("min_cosine", -1.1), ("min_cosine", float("nan")), ("max_z", 0.0)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}: expected .*, got {value}"):
        judged(residuals([1.0]), **{option: value})
