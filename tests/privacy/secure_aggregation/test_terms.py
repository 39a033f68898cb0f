import dataclasses

import pytest

from fl_lightning.privacy.secure_aggregation.terms import Terms

TERMS = Terms("run", "hr", 1, invited=16, size=10)


@pytest.mark.parametrize(("holders", "needed"), [(3, 3), (4, 3), (6, 5), (15, 11), (16, 11), (64, 43)])
def test_more_than_two_thirds_hold_a_secret(holders, needed):
    assert TERMS.shares_needed(holders) == needed
    assert 3 * needed > 2 * holders


def test_a_half_is_enough_for_a_server_that_nobody_helps():
    assert dataclasses.replace(TERMS, threshold=0.5).shares_needed(16) == 9


def test_at_least_the_minimum_of_clients():
    assert TERMS.clients_needed == 11
    assert dataclasses.replace(TERMS, min_clients=14).clients_needed == 14


@pytest.mark.parametrize(
    "change",
    [
        {"run": "another"},
        {"group": "it"},
        {"round_num": 2},
        {"invited": 15},
        {"size": 11},
        {"bound": 5.0},
        {"max_weight": 9},
        {"threshold": 0.6},
        {"min_clients": 4},
        {"layout": "x"},
    ],
)
def test_each_term_changes_the_round_and_all_that_is_signed(change):
    other = dataclasses.replace(TERMS, **change)
    assert other.digest != TERMS.digest
    assert other.context("advertise", "a") != TERMS.context("advertise", "a")


def test_contexts_of_different_parts_differ():
    assert TERMS.context("x", "ab", "c") != TERMS.context("x", "a", "bc")
    assert TERMS.context("x", "1") != TERMS.context("x", b"1")


@pytest.mark.parametrize(
    "change",
    [{"threshold": 0.4}, {"threshold": 1.0}, {"min_clients": 1}, {"invited": 1}, {"bound": float("inf")}, {"size": 0}],
)
def test_ranges(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(TERMS, **change)


def test_sums_of_weights_fit():
    with pytest.raises(ValueError, match="sum of weights"):
        dataclasses.replace(TERMS, invited=100_000, max_weight=100_000)
