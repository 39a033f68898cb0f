import math

import pytest

from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.aggregation.weighting.contribution import weights

CLIENTS = {"a": ClientStats(3, 50), "b": ClientStats(1, 90), "c": ClientStats(6, 10)}


def test_weights_by_hand():
    # 2.5 − 2 = 0.5; max(0, 1.75 − 2) = 0; 2.25 − 2 = 0.25
    without = {"a": 2.5, "b": 1.75, "c": 2.25}
    assert weights(CLIENTS, loss_without=without, loss_with=2.0) == {"a": 0.5, "b": 0.0, "c": 0.25}


def test_records_do_not_count_again():
    same = dict.fromkeys(CLIENTS, 2.5)
    assert weights(CLIENTS, loss_without=same, loss_with=2.0) == {"a": 0.5, "b": 0.5, "c": 0.5}


def test_nobody_contributes_falls_back_to_examples():
    without = {"a": 2.0, "b": 1.0, "c": 1.5}
    assert weights(CLIENTS, loss_without=without, loss_with=2.0) == {"a": 3.0, "b": 1.0, "c": 6.0}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_falls_back_to_examples(odd):
    fallback = {"a": 3.0, "b": 1.0, "c": 6.0}
    assert weights(CLIENTS, loss_without={"a": 2.5, "b": odd, "c": 2.5}, loss_with=2.0) == fallback
    assert weights(CLIENTS, loss_without=dict.fromkeys(CLIENTS, 2.5), loss_with=odd) == fallback


def test_a_single_client_needs_no_figures():
    assert weights({"a": ClientStats(3, 50)}, loss_without={}, loss_with=math.nan) == {"a": 3.0}


def test_figures_of_others_are_not_looked_at():
    without = {"a": 2.5, "b": 1.75, "c": 2.25, "gone": math.nan}
    assert set(weights(CLIENTS, loss_without=without, loss_with=2.0)) == set(CLIENTS)


def test_a_missing_figure_is_refused():
    with pytest.raises(ValueError, match="loss_without: none for 'b', wanted one for every client"):
        weights(CLIENTS, loss_without={"a": 2.5, "c": 2.25}, loss_with=2.0)
