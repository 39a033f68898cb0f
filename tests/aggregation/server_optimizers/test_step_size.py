import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregation.server_optimizers.step_size import (
    SCHEDULES,
    by_update_agreement,
    cosine,
    linear,
    step_size,
)
from fl_lightning.errors import InputError


def test_constant_is_the_momentum_in_every_round():
    assert [step_size("constant", t, momentum=0.3, end=0.1, rounds=2) for t in (1, 2, 100)] == [0.3, 0.3, 0.3]


def test_linear_by_hand():
    # 0.5 → 0.1 over 4 rounds: 0.5, 0.4, 0.3, 0.2, and 0.1 from round 5 on
    got = [step_size("linear", t, momentum=0.5, end=0.1, rounds=4) for t in (1, 2, 3, 4, 5, 6, 1000)]
    assert got == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1], rel=1e-12)


def test_cosine_by_hand():
    # 0.1 + 0.4 · (1 + cos(π s)) / 2 with s = 0, 1/3, 2/3, 1: cos = 1, 0.5, −0.5, −1
    got = [step_size("cosine", t, momentum=0.5, end=0.1, rounds=3) for t in (1, 2, 3, 4, 9)]
    assert got == pytest.approx([0.5, 0.4, 0.2, 0.1, 0.1], rel=1e-12)


@pytest.mark.parametrize("shape", [linear, cosine])
def test_the_ends_are_met_exactly(shape):
    assert shape(1, momentum=0.3, end=0.7, rounds=7) == 0.3
    assert shape(8, momentum=0.3, end=0.7, rounds=7) == 0.7
    assert shape(80, momentum=0.3, end=0.7, rounds=7) == 0.7


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_an_end_of_zero_leaves_no_round_without_effect(schedule):
    assert all(step_size(schedule, t, momentum=0.1, rounds=10) > 0 for t in range(1, 11))
    assert step_size(schedule, 11, momentum=0.1, rounds=10) == 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_over_a_single_round(schedule):
    assert [step_size(schedule, t, momentum=0.4, end=0.2, rounds=1) for t in (1, 2, 3)] == [0.4, 0.2, 0.2]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["linear", "cosine"]),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(1, 50),
    st.integers(1, 100),
)
def test_every_step_is_between_the_ends_and_never_turns_back(schedule, momentum, end, rounds, t):
    now, later = (step_size(schedule, x, momentum=momentum, end=end, rounds=rounds) for x in (t, t + 1))
    assert min(momentum, end) - 1e-12 <= now <= max(momentum, end) + 1e-12
    assert abs(later - end) <= abs(now - end) + 1e-12


def test_agreement_by_hand():
    # Δ = (3, 0) and (0, 4) with w = 1/2 each: ‖(1.5, 2)‖ = 2.5, mean norm 3.5
    assert by_update_agreement(momentum=0.7, norm_of_mean=2.5, mean_of_norms=3.5) == pytest.approx(0.5, rel=1e-12)
    assert step_size("agreement", 3, momentum=0.7, norm_of_mean=2.5, mean_of_norms=3.5) == pytest.approx(0.5, rel=1e-12)


def test_clients_that_agree_give_the_momentum_and_opposite_ones_nothing():
    assert by_update_agreement(momentum=0.3, norm_of_mean=2.0, mean_of_norms=2.0) == 0.3
    assert by_update_agreement(momentum=0.3, norm_of_mean=0.0, mean_of_norms=2.0) == 0.0


def test_rounding_never_lifts_it_above_the_momentum():
    assert by_update_agreement(momentum=0.3, norm_of_mean=2.0 * (1 + 1e-9), mean_of_norms=2.0) == 0.3


def test_nobody_moved_gives_the_momentum():
    assert by_update_agreement(momentum=0.3, norm_of_mean=0.0, mean_of_norms=0.0) == 0.3
    assert step_size("agreement", 1, momentum=0.3) == 0.3


@pytest.mark.parametrize("clients", [1, 2, 4, 9])
def test_equal_residuals_at_right_angles_give_one_over_the_root_of_their_number(clients):
    norm_of_mean = math.sqrt(clients * (5 / clients) ** 2)
    assert by_update_agreement(momentum=1.0, norm_of_mean=norm_of_mean, mean_of_norms=5.0) == pytest.approx(
        clients**-0.5
    )


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_norms_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match=f"norm_of_mean: expected a finite number of at least 0, got {bad}"):
        by_update_agreement(momentum=0.1, norm_of_mean=bad, mean_of_norms=1.0)
    with pytest.raises(ValueError, match=f"mean_of_norms: expected a finite number of at least 0, got {bad}"):
        by_update_agreement(momentum=0.1, norm_of_mean=1.0, mean_of_norms=bad)


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="schedule: expected one of .*agreement, got 'cosin'; did you mean 'cosine'?"):
        step_size("cosin", 1, momentum=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("key", "value"), [("round_num", 0), ("momentum", 0.0), ("momentum", -1.0), ("momentum", math.nan)]
)
def test_numbers_out_of_range_are_refused(schedule, key, value):
    given = {"round_num": 1, "momentum": 0.1, key: value}
    with pytest.raises(ValueError, match=f"{key}: expected .*, got {value}"):
        step_size(schedule, **given)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("key", "value"), [("end", -0.1), ("end", math.nan), ("rounds", 0)])
def test_ends_out_of_range_are_refused_where_they_are_used(schedule, key, value):
    with pytest.raises(ValueError, match=f"{key}: expected .*, got {value}"):
        step_size(schedule, 1, momentum=0.1, **{key: value})
    assert step_size("constant", 1, momentum=0.1, **{key: value}) == 0.1
