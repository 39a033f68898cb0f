import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.weighting import (
    WEIGHTINGS,
    ClientStats,
    contribution,
    examples,
    improvement_of,
    loss_improvement,
    make_weighting,
    tokens,
    uniform,
)
from fl_lightning.errors import InputError


def test_stats_are_frozen():
    stats = ClientStats(num_examples=1, num_tokens=2, losses=[1.0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.num_examples = 5


@pytest.mark.parametrize("bad", [0, -1, 2**53 + 1, 1.0, True, "7", None])
def test_a_count_of_examples_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"num_examples: expected an integer from 1 to 2\^53, got"):
        ClientStats(num_examples=bad, num_tokens=1)


@pytest.mark.parametrize("bad", [-1, 2**53 + 1, 2.5, math.inf, False])
def test_a_count_of_tokens_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"num_tokens: expected an integer from 0 to 2\^53, got"):
        ClientStats(num_examples=1, num_tokens=bad)


def test_an_integer_of_any_length_is_named_by_its_bits():
    with pytest.raises(ValueError, match="got an integer of 40001 bits"):
        ClientStats(num_examples=1, num_tokens=1 << 40000)


@pytest.mark.parametrize("bad", ["1.0", None, True, 1 << 2000])
def test_a_loss_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="losses: expected numbers"):
        ClientStats(num_examples=1, num_tokens=1, losses=[1.0, bad])


@pytest.mark.parametrize("odd", [math.nan, math.inf, -3.0, 2, 1e300])
def test_an_odd_loss_is_a_loss(odd):
    assert ClientStats(num_examples=1, num_tokens=1, losses=[odd]).losses == [odd]


def test_the_edges_are_allowed():
    ClientStats(num_examples=1, num_tokens=0)
    ClientStats(num_examples=2**53, num_tokens=2**53)


def test_every_record_counts():
    clients = {"hr/b": ClientStats(30, 1), "hr/a": ClientStats(10, 9000, [3.0, 1.0])}
    assert examples(clients) == {"hr/b": 30.0, "hr/a": 10.0}


def test_weights_are_not_normalised():
    assert sum(examples({"a": ClientStats(7, 1), "b": ClientStats(5, 1)}).values()) == 12.0


def test_every_token_counts():
    assert tokens({"long": ClientStats(2, 600), "short": ClientStats(9, 200)}) == {"long": 600.0, "short": 200.0}


def test_a_client_without_tokens_has_no_weight():
    assert tokens({"a": ClientStats(2, 600), "b": ClientStats(9, 0)}) == {"a": 600.0, "b": 0.0}


def test_no_tokens_anywhere_falls_back_to_examples():
    assert tokens({"a": ClientStats(2, 0), "b": ClientStats(9, 0)}) == {"a": 2.0, "b": 9.0}


def test_one_client_one_vote():
    assert uniform({"large": ClientStats(1000, 10**6), "small": ClientStats(1, 0)}) == {"large": 1.0, "small": 1.0}


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
    assert improvement_of(losses) == expected


def test_loss_improvement_by_hand():
    # 10 · (3 − 2.5) = 5; 4 · (2 − 1.75) = 1; 40 · max(0, 2 − 2.5) = 0
    clients = {
        "a": ClientStats(10, 1, [3.0, 2.5]),
        "b": ClientStats(4, 1, [2.0, 9.0, 9.0, 1.75]),
        "c": ClientStats(40, 1, [2.0, 2.5]),
    }
    assert loss_improvement(clients) == {"a": 5.0, "b": 1.0, "c": 0.0}


def test_nobody_improved_falls_back_to_examples():
    assert loss_improvement({"a": ClientStats(3, 1, [1.0, 2.0]), "b": ClientStats(5, 1, [2.0, 2.0])}) == {
        "a": 3.0,
        "b": 5.0,
    }


@pytest.mark.parametrize("losses", [[], [2.0], [3.0, math.nan]])
def test_losses_that_are_missing_fall_back_to_examples_for_all(losses):
    assert loss_improvement({"a": ClientStats(3, 1, [3.0, 1.0]), "b": ClientStats(5, 1, losses)}) == {
        "a": 3.0,
        "b": 5.0,
    }


def test_losses_whose_weights_would_overflow_fall_back_to_examples():
    assert loss_improvement({"a": ClientStats(30, 1, [1e308, 1.0]), "b": ClientStats(5, 1, [2.0, 1.0])}) == {
        "a": 30.0,
        "b": 5.0,
    }


CLIENTS = {"a": ClientStats(3, 50), "b": ClientStats(1, 90), "c": ClientStats(6, 10)}


def test_contribution_by_hand():
    # 2.5 − 2 = 0.5; max(0, 1.75 − 2) = 0; 2.25 − 2 = 0.25
    without = {"a": 2.5, "b": 1.75, "c": 2.25}
    assert contribution(CLIENTS, loss_without=without, loss_with=2.0) == {"a": 0.5, "b": 0.0, "c": 0.25}


def test_records_do_not_count_again():
    same = dict.fromkeys(CLIENTS, 2.5)
    assert contribution(CLIENTS, loss_without=same, loss_with=2.0) == {"a": 0.5, "b": 0.5, "c": 0.5}


def test_nobody_contributes_falls_back_to_examples():
    without = {"a": 2.0, "b": 1.0, "c": 1.5}
    assert contribution(CLIENTS, loss_without=without, loss_with=2.0) == {"a": 3.0, "b": 1.0, "c": 6.0}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_falls_back_to_examples(odd):
    fallback = {"a": 3.0, "b": 1.0, "c": 6.0}
    assert contribution(CLIENTS, loss_without={"a": 2.5, "b": odd, "c": 2.5}, loss_with=2.0) == fallback
    assert contribution(CLIENTS, loss_without=dict.fromkeys(CLIENTS, 2.5), loss_with=odd) == fallback


def test_a_single_client_needs_no_figures():
    assert contribution({"a": ClientStats(3, 50)}, loss_without={}, loss_with=math.nan) == {"a": 3.0}


def test_figures_of_others_are_not_looked_at():
    without = {"a": 2.5, "b": 1.75, "c": 2.25, "gone": math.nan}
    assert set(contribution(CLIENTS, loss_without=without, loss_with=2.0)) == set(CLIENTS)


def test_a_missing_figure_is_refused():
    with pytest.raises(ValueError, match="loss_without: expected a loss for every client, got none for 'b'"):
        contribution(CLIENTS, loss_without={"a": 2.5, "c": 2.25}, loss_with=2.0)


LOSSES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=9)
STATS = st.builds(ClientStats, st.integers(1, 2**53), st.integers(0, 2**53), LOSSES)
ANY_CLIENTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), STATS, min_size=1, max_size=5)
MEASURED = st.floats(allow_nan=True, allow_infinity=True)


def made(name, clients, losses=(), loss_with=0.0):
    if name != "contribution":
        return make_weighting(name)
    return make_weighting(name, loss_without=dict(zip(clients, losses, strict=False)), loss_with=loss_with)


@pytest.mark.parametrize("name", WEIGHTINGS)
@settings(max_examples=60, deadline=None)
@given(clients=ANY_CLIENTS, losses=st.lists(MEASURED, min_size=5, max_size=5), loss_with=MEASURED)
def test_weights_are_finite_not_negative_and_somebody_has_one(name, clients, losses, loss_with):
    weights = made(name, clients, losses, loss_with)(clients)
    assert list(weights) == list(clients)
    assert all(type(w) is float and 0 <= w < math.inf for w in weights.values())
    assert 0 < sum(weights.values()) < math.inf


@pytest.mark.parametrize("name", WEIGHTINGS)
@settings(max_examples=30, deadline=None)
@given(clients=ANY_CLIENTS, losses=st.lists(MEASURED, min_size=5, max_size=5))
def test_the_order_of_the_clients_makes_no_difference(name, clients, losses):
    rule = made(name, clients, losses)
    assert rule(dict(reversed(clients.items()))) == rule(clients)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_no_clients_are_refused(name):
    with pytest.raises(ValueError, match="clients to weight: expected at least one, got none"):
        made(name, {})({})


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(
        InputError, match="weighting: expected one of examples, .*, got 'token'; did you mean 'tokens'?"
    ):
        make_weighting("token")
