"""The membership test against numbers worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from fl_lightning.privacy.audit.membership import membership_test


def test_auc_counts_pairs_and_halves_ties():
    result = membership_test(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0]), seed=0)
    assert result.auc == pytest.approx((1 + 1.5 + 2) / 6)  # of the pairs: 1 > 0; 2 > 0 and a tie; 3 > both
    assert (result.members, result.others) == (3, 2)


def test_auc_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    members, others = generator.normal(0.4, 1, 300).round(1), generator.normal(0, 1, 200).round(1)
    expected = roc_auc_score([1] * 300 + [0] * 200, np.concatenate([members, others]))
    result = membership_test(members, others, seed=3)
    assert result.auc == pytest.approx(expected)
    assert result.auc_low < expected < result.auc_high
    assert result.auc_high - result.auc_low == pytest.approx(4 * 0.0255, rel=0.2)  # DeLong's error for these sizes


def test_true_positives_at_one_percent():
    others = np.arange(200.0)  # two may be above: the threshold is 197
    members = np.array([197.0, 197.5, 198.5, 300.0, 5.0])
    result = membership_test(members, others, seed=0)
    assert (result.tpr, result.fpr) == (3 / 5, 0.01)
    exact = binomtest(3, 5).proportion_ci(0.95, method="exact")
    assert (result.tpr_low, result.tpr_high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("others", "fpr"), [(99, 0.0), (100, 0.01), (150, 1 / 150)])
def test_few_held_out_records_allow_no_false_positive(others, fpr):
    assert membership_test(np.array([1.0]), np.arange(float(others)), seed=0).fpr == pytest.approx(fpr)


@pytest.mark.parametrize(("score", "interval"), [(9.0, (0.025 ** (1 / 4), 1.0)), (-9.0, (0.0, 1 - 0.025 ** (1 / 4)))])
def test_interval_of_all_or_none(score, interval):
    result = membership_test(np.full(4, score), np.zeros(10), seed=0)
    assert (result.tpr_low, result.tpr_high) == pytest.approx(interval)
    assert result.auc == (1.0 if score > 0 else 0.0)


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(1).normal(size=(2, 40))
    first, second, third = (membership_test(*scores, seed=seed) for seed in (7, 7, 8))
    assert first == second
    assert first.auc == third.auc
    assert first.auc_low != third.auc_low
    assert list(first.to_dict()) == [
        "members", "others", "auc", "auc_low", "auc_high", "tpr", "tpr_low", "tpr_high", "fpr", "max_fpr"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "others", "options"),
    [([], [1.0], {}), ([1.0], [], {}), ([np.inf], [1.0], {}), ([1.0], [1.0], {"max_fpr": 1.0})],
)
def test_impossible_input_is_refused(members, others, options):
    with pytest.raises(ValueError, match="expected"):
        membership_test(np.array(members), np.array(others), seed=0, **options)
