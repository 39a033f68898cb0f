import math

import pytest

from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.aggregation.weighting.loss_improvement import improvement, weights


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.5], 0.5),  # a quarter is at least one loss
        ([3.0, 9.0, 2.0], 1.0),
        ([4.0, 9.0, 9.0, 1.0], 3.0),
        ([4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0], 1.5),  # (4 + 2) / 2 − (1 + 2) / 2
        ([4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0], 1.5),  # 11 // 4 = 2
        ([1.0, 3.0], -2.0),
        ([], None),
        ([3.0], None),
        ([3.0, math.nan, 1.0], None),
        ([math.inf, 1.0], None),
    ],
)
def test_improvement_by_hand(losses, expected):
    assert improvement(losses) == expected


def test_weights_by_hand():
    # 10 · (3 − 2.5) = 5; 4 · (2 − 1.75) = 1; 40 · max(0, 2 − 2.5) = 0
    clients = {
        "a": ClientStats(10, 1, [3.0, 2.5]),
        "b": ClientStats(4, 1, [2.0, 9.0, 9.0, 1.75]),
        "c": ClientStats(40, 1, [2.0, 2.5]),
    }
    assert weights(clients) == {"a": 5.0, "b": 1.0, "c": 0.0}


def test_nobody_improved_falls_back_to_examples():
    assert weights({"a": ClientStats(3, 1, [1.0, 2.0]), "b": ClientStats(5, 1, [2.0, 2.0])}) == {"a": 3.0, "b": 5.0}


@pytest.mark.parametrize("losses", [[], [2.0], [3.0, math.nan]])
def test_losses_that_are_missing_fall_back_to_examples_for_all(losses):
    assert weights({"a": ClientStats(3, 1, [3.0, 1.0]), "b": ClientStats(5, 1, losses)}) == {"a": 3.0, "b": 5.0}


def test_losses_whose_weights_would_overflow_fall_back_to_examples():
    assert weights({"a": ClientStats(30, 1, [1e308, 1.0]), "b": ClientStats(5, 1, [2.0, 1.0])}) == {"a": 30.0, "b": 5.0}
