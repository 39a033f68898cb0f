import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.robust.geometric_median import geometric_median
from fl_lightning.aggregation.robust.result import weighted_center


def residuals(*vectors):
    return {f"hr/{i:02}": {"x": torch.tensor(v, dtype=torch.float64)} for i, v in enumerate(vectors)}


def median_of(updates, weights=None, **options):
    given_ = dict.fromkeys(updates, 1.0) if weights is None else dict(zip(updates, weights, strict=True))
    found = geometric_median(updates, given_, **options)
    assert not found.rejected
    assert found.scales == dict.fromkeys(updates, 1.0)
    assert sum(found.weights.values()) == pytest.approx(sum(given_.values()))
    return weighted_center(updates, found)["x"].numpy()


def reference(vectors, weights, iterations=5000, smoothing=1e-6):
    """Smoothed Weiszfeld on the vectors themselves, from their weighted mean."""
    z = np.average(vectors, axis=0, weights=weights)
    for _ in range(iterations):
        pulls = weights / np.maximum(smoothing, np.linalg.norm(vectors - z, axis=1))
        z = pulls @ vectors / pulls.sum()
    return z


def test_the_centre_of_a_square_is_its_median():
    # the diagonals' crossing, whatever the shape of the quadrangle
    assert median_of(residuals([0, 0], [2, 0], [4, 4], [0, 2])) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_the_fermat_point_of_a_triangle():
    # (0, 0), (1, 0), (0, 1): on x = y, where two sides are seen at 120°: x = (3 − √3) / 6
    wanted = (3 - 3**0.5) / 6
    assert median_of(residuals([0, 0], [1, 0], [0, 1])) == pytest.approx([wanted, wanted], abs=1e-6)


def test_on_a_line_it_is_the_weighted_median():
    assert median_of(residuals([0.0], [1.0], [50.0])) == pytest.approx([1.0], abs=1e-4)
    assert median_of(residuals([0.0], [1.0], [50.0]), [1, 1, 5]) == pytest.approx([50.0], abs=1e-4)


def test_more_than_half_of_the_weight_decides():
    updates = residuals([1.0, 2.0], [5.0, 5.0], [0.0, -9.0], [3.0, 3.0])
    assert median_of(updates, [3.1, 1, 1, 1]) == pytest.approx([1.0, 2.0], abs=1e-4)


def test_two_of_equal_weight_give_their_mean():
    assert median_of(residuals([0.0], [4.0])) == pytest.approx([2.0])


def test_identical_updates_keep_their_weights():
    updates = residuals(*[[300.0, 0.1]] * 3)
    found = geometric_median(updates, dict(zip(updates, [1.0, 2.0, 5.0], strict=True)))
    assert list(found.weights.values()) == pytest.approx([1.0, 2.0, 5.0], rel=1e-9)


@pytest.mark.parametrize("size", [1e3, 1e15, 1e38])
def test_three_of_eight_far_away_have_next_to_no_say(size):
    draw = np.random.default_rng(0)
    near = draw.normal(size=(5, 20))
    far = np.tile(draw.normal(size=20) * size, (3, 1))
    found = median_of(residuals(*near.tolist(), *far.tolist()))
    assert np.linalg.norm(found - near.mean(axis=0)) < 5  # honest ones are about 4.5 from zero


def test_identical_honest_ones_hold_against_three_far_away():
    found = median_of(residuals(*[[1.0, 2.0]] * 5, *[[-1e30, 1e29]] * 3))
    assert found == pytest.approx([1.0, 2.0], abs=1e-4)


def test_smoothing_beyond_all_distances_is_the_weighted_mean():
    assert median_of(residuals([0.0], [1.0], [5.0]), [1, 1, 2], smoothing=100.0) == pytest.approx([2.75])


def test_one_iteration_by_hand():
    # squared distances to the other two: 1 and 36, 1 and 25, 36 and 25; the root of their median
    apart = np.sqrt([(1 + 36) / 2, (1 + 25) / 2, (36 + 25) / 2])
    start = 1 / apart / (1 / apart).sum()
    z = start @ [0.0, 1.0, 6.0]
    pulls = 1 / np.abs(z - np.array([0.0, 1.0, 6.0]))
    wanted = pulls @ [0.0, 1.0, 6.0] / pulls.sum()
    assert median_of(residuals([0.0], [1.0], [6.0]), iterations=1) == pytest.approx([wanted], rel=1e-9)


def far(z, vectors, weights):
    """What the geometric median minimises."""
    return weights @ np.linalg.norm(vectors - z, axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_weiszfeld_on_vectors_finds(seed):
    draw = np.random.default_rng(seed)
    vectors, weights = draw.normal(size=(8, 12)), draw.uniform(0.5, 2.0, size=8)
    vectors[0] *= 30
    found = median_of(residuals(*vectors.tolist()), weights.tolist())
    assert found == pytest.approx(reference(vectors, weights), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 9))
@example(1699879, 3)  # a client is the median: the iteration converges slowly
def test_nothing_is_nearer_to_all(seed, n):
    draw = np.random.default_rng(seed)
    vectors, weights = draw.normal(size=(n, 12)), draw.uniform(0.5, 2.0, size=n)
    vectors[0] *= 30
    least = far(median_of(residuals(*vectors.tolist()), weights.tolist()), vectors, weights) * (1 - 1e-6)
    assert least <= far(reference(vectors, weights, iterations=500), vectors, weights)
    assert all(least <= far(vector, vectors, weights) for vector in vectors)
    assert all(least <= far(z, vectors, weights) for z in draw.dirichlet(np.ones(n), size=50) @ vectors)


@pytest.mark.parametrize(("option", "value"), [("iterations", 0), ("smoothing", 0.0), ("smoothing", float("nan"))])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}: expected .*, got {value}"):
        geometric_median(residuals([1.0]), {"hr/00": 1.0}, **{option: value})
