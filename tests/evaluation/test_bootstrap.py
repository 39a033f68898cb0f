import numpy as np
import pytest
from scipy.stats import bootstrap

from fl_lightning.evaluation.bootstrap import ratio_interval


def test_the_mean_is_the_ratio_of_the_sums():
    assert ratio_interval(np.array([3.0, 1.0]), np.array([1.0, 3.0]), seed=0, resamples=0) == {"mean": 1.0}


def test_the_interval_is_scipys_percentile_interval():
    draws = np.random.default_rng(1)
    tokens = draws.integers(1, 20, 60).astype(float)
    loss = tokens * draws.normal(2.0, 0.5, 60)
    ours = ratio_interval(loss, tokens, seed=3, resamples=20_000)

    def statistic(top, below, axis=-1):
        return top.sum(axis) / below.sum(axis)

    theirs = bootstrap(
        (loss, tokens), statistic, paired=True, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    assert ours["low"] == pytest.approx(theirs.low, abs=0.01)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.01)
    assert ours["low"] < ours["mean"] < ours["high"]


def test_the_same_seed_gives_the_same_interval_however_many_are_drawn_at_a_time(monkeypatch):
    top, below = np.arange(50.0), np.ones(50)
    found = ratio_interval(top, below, seed=5)
    monkeypatch.setattr("fl_lightning.evaluation.bootstrap.MAX_COUNTS", 700)
    assert found == ratio_interval(top, below, seed=5) != ratio_interval(top, below, seed=6)


def test_records_without_targets_are_no_trouble():
    found = ratio_interval(np.array([0.0, 0.0, 6.0]), np.array([0.0, 0.0, 3.0]), seed=0)
    assert found == {"mean": 2.0, "low": 2.0, "high": 2.0}  # draws of empty records alone have no ratio


@pytest.mark.parametrize(
    ("top", "below"), [(np.ones(2), np.ones(3)), (np.ones(2), np.zeros(2)), (np.ones((1, 1)),) * 2]
)
def test_what_has_no_ratio_is_refused(top, below):
    with pytest.raises(ValueError, match="expected"):
        ratio_interval(top, below, seed=0)
