import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.aggregation.robust.coordinate_median import median
from fl_lightning.aggregation.robust.trimmed_mean import trim_count, trimmed_mean


def residuals(*vectors):
    return {f"hr/{i}": {"x": torch.tensor(v)} for i, v in enumerate(vectors)}


def mean_of(updates, fraction):
    return trimmed_mean(updates, {c: 1.0 + i for i, c in enumerate(updates)}, fraction=fraction)["x"].tolist()


def test_coordinates_are_trimmed_apart():
    # n = 4, one from each side: {2, 4} and {0, 5}
    assert mean_of(residuals([1.0, 5.0], [4.0, 0.0], [2.0, 900.0], [-70.0, -3.0]), 0.25) == [1.5, 2.5]


def test_a_fraction_is_rounded_down():
    values = residuals([1.0], [2.0], [3.0], [4.0], [100.0])
    assert mean_of(values, 0.19) == [22.0]  # floor(0.95) = 0: the plain mean
    assert mean_of(values, 0.2) == [3.0]  # 2, 3, 4
    assert mean_of(values, 0.39) == [3.0]
    assert mean_of(values, 0.4) == [3.0]  # the median alone


def test_no_fraction_is_the_plain_mean_without_weights():
    assert mean_of(residuals([1.0], [2.0], [6.0]), 0.0) == [3.0]


def test_towards_half_it_is_the_median(department):
    updates = dict(list(department().items())[:7])
    weights = dict.fromkeys(updates, 1.0)
    found, wanted = trimmed_mean(updates, weights, fraction=0.49), median(updates, weights)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 0.9, float("nan")])
def test_a_fraction_that_leaves_nobody_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction: expected a number in \[0, 0\.5\), got {fraction}"):
        mean_of(residuals([1.0]), fraction)


@pytest.mark.parametrize(
    ("fraction", "n", "wanted"), [(0.29, 100, 29), (0.07, 100, 7), (0.1, 30, 3), (1e-7, 8, 0), (0, 9, 0)]
)
def test_the_fraction_is_taken_as_it_is_written(fraction, n, wanted):
    assert trim_count(fraction, n) == wanted


@given(st.floats(0, 0.5, exclude_max=True), st.integers(1, 1000))
def test_somebody_is_always_left(fraction, n):
    assert 0 <= 2 * trim_count(fraction, n) < n


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=9))
def test_it_is_the_mean_of_the_sorted_middle(rows):
    cut = len(rows) * 3 // 10
    middle = np.sort(np.array(rows), axis=0)[cut : len(rows) - cut]
    assert mean_of(residuals(*rows), 0.3) == pytest.approx(middle.mean(axis=0), rel=1e-6, abs=1e-9)
