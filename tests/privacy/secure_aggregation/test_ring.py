import numpy as np
import pytest

from fl_lightning.privacy.secure_aggregation.ring import error_bound, quantize, restore, scale
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms


def terms(**changes):
    return Terms(**{"run": "run", "group": "hr", "round_num": 1, "invited": 3, "size": 2, **changes})


def test_a_small_sum_by_hand():
    t = terms(invited=2, size=1, bound=1.0, max_weight=4)
    assert scale(t) == 8 / (2**31 - 2)
    # 3 · 0.25 / s = 0.75 · (2³¹ − 2) / 8 = 201326591.8125, and −1 · 4 / s = −1073741823
    assert quantize(np.array([0.25]), 3, t).tolist() == [201326592, 3]
    assert quantize(np.array([-1.0]), 4, t).tolist() == [2**32 - 1073741823, 4]
    mean, weight = restore(np.array([201326592 + 2**32 - 1073741823 - 2**32, 7]).astype(np.int64).astype(np.uint32), t)
    assert weight == 7
    assert mean[0] == pytest.approx((3 * 0.25 - 4) / 7, abs=error_bound(t, 2, 7))


def test_largest_updates_do_not_wrap_around():
    for sign in (1, -1):
        t = terms(invited=1000, size=1)
        one = quantize(np.array([sign * t.bound]), t.max_weight, t)
        total = np.zeros(2, dtype=np.uint32)
        for _ in range(1000):
            total += one
        mean, weight = restore(total, t)
        assert weight == 1000 * t.max_weight
        assert mean[0] == pytest.approx(sign * t.bound, abs=error_bound(t, 1000, weight))


def test_error_is_within_its_bound_and_the_bound_is_not_idle():
    generator = np.random.default_rng(0)
    t = terms(invited=16, size=20_000)
    weights = generator.integers(1, 200, size=16)
    values = generator.normal(scale=0.01, size=(16, 20_000))
    total = np.zeros(20_001, dtype=np.uint32)
    for value, weight in zip(values, weights, strict=True):
        total += quantize(value, int(weight), t)
    mean, weight = restore(total, t)
    error = np.abs(mean - np.average(values, axis=0, weights=weights)).max()
    bound = error_bound(t, 16, weight)
    assert 0.1 * bound < error <= bound < 1e-6


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        ([5.0, 0.0], 1, r"elements of at most 4 \(federation\.masking\.bound\), got 5"),
        ([np.nan, 0.0], 1, "got nan"),
        ([0.0, 0.0], 1025, r"1 to 1024 \(federation\.masking\.max_weight\), got 1025"),
        ([0.0, 0.0], 0, "got 0"),
        ([0.0], 1, "expected 2 elements"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_clipped(values, weight, message):
    with pytest.raises(SecureAggregationError, match=message):
        quantize(np.array(values), weight, terms())


def test_masks_that_stay_show_in_the_sum_of_weights():
    with pytest.raises(SecureAggregationError, match="expected masks to cancel"):
        restore(np.array([0, 0, 2**31], dtype=np.uint32), terms())
