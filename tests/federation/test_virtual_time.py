"""The order of events, against orders that were worked out by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.federation.virtual_time import BufferedRounds, SynchronousRounds

SECONDS = {"hr/a": 1.0, "hr/b": 2.0, "hr/c": 20.0}


def buffered(seconds, **options):
    departments = {}
    for client_id in seconds:
        departments.setdefault(client_id.split("/")[0], []).append(client_id)
    return BufferedRounds(departments, lambda c, now: now + seconds[c], **{"seed": 7, "buffer": 1, **options})


def taken(plan):
    return {fit.client_id[3:]: (fit.version, fit.staleness) for fit in plan.fits.values()}


def test_three_clients_of_speeds_1_2_and_20_in_the_order_worked_out_by_hand():
    # Each update is a step, and whoever arrives starts again at once. a arrives at 1, 2, 3, …; b at 2, 4, 6, …; c at
    # 20, 40. At equal times a comes before b and b before c. a's updates are one step old whenever b has stepped since.
    rounds = buffered(SECONDS)
    plans = [rounds.next_round() for _ in range(7)]
    assert [plan.seconds for plan in plans] == [1, 2, 2, 3, 4, 4, 5]
    assert [taken(plan) for plan in plans] == [
        {"a": (0, 0)},
        {"a": (1, 0)},  # at 2
        {"b": (0, 2)},  # at 2, after a
        {"a": (2, 1)},
        {"a": (4, 0)},  # at 4
        {"b": (3, 2)},
        {"a": (5, 1)},
    ]
    assert rounds.versions_in_use() == {("hr", 7), ("hr", 6), ("hr", 0)}  # of a, b and c
    plans += [rounds.next_round() for _ in range(23)]  # up to c: 20 of a and 10 of b are at most as late
    last = rounds.next_round()
    assert (last.seconds, taken(last)) == (20.0, {"c": (0, 30)})


def test_a_buffer_of_two_takes_whoever_comes_and_nobody_twice():
    # a waits in the buffer from 1 on and is not asked again until the step at 2, with b; c is on its way until 20.
    rounds = buffered(SECONDS, buffer=2)
    plans = [rounds.next_round() for _ in range(3)]
    assert [(plan.seconds, taken(plan)) for plan in plans] == [
        (2.0, {"a": (0, 0), "b": (0, 0)}),
        (4.0, {"a": (1, 0), "b": (1, 0)}),
        (6.0, {"a": (2, 0), "b": (2, 0)}),
    ]


def test_too_old_updates_are_dropped_and_their_clients_start_again():
    rounds = buffered(SECONDS, buffer=2, max_staleness=3)
    plans = [rounds.next_round() for _ in range(10)]
    assert [plan.dropped for plan in plans] == [[]] * 10
    late = [rounds.next_round() for _ in range(11)]
    # c arrives at 20 together with the tenth step, when ten steps have been made, and again at 40
    assert [list(plan.dropped) for plan in late] == [["hr/c"], *[[]] * 9, ["hr/c"]]
    assert rounds.versions_in_use() == {("hr", 21), ("hr", 20)}


def test_departments_step_when_their_own_buffers_are_full():
    rounds = buffered({"hr/a": 3.0, "it/b": 2.0}, buffer=1)
    plans = [rounds.next_round() for _ in range(5)]
    assert [(plan.seconds, list(plan.fits)) for plan in plans] == [
        (2.0, ["it/b"]), (3.0, ["hr/a"]), (4.0, ["it/b"]), (6.0, ["hr/a"]), (6.0, ["it/b"]),
    ]  # fmt: skip
    assert [fit.staleness for plan in plans for fit in plan.fits.values()] == [0] * 5  # by the department's own steps
    assert [fit.version for plan in plans for fit in plan.fits.values()] == [0, 0, 1, 2, 3]


def test_synchronous_rounds_wait_for_the_last_client_that_they_take():
    everybody = {"hr": (list(SECONDS), 3)}
    assert SynchronousRounds(lambda r: everybody, lambda c, now: now + SECONDS[c]).next_round().seconds == 20
    two = {"hr": (list(SECONDS), 2), "it": (["it/d"], 1)}
    rounds = SynchronousRounds(lambda r: two, lambda c, now: now + {**SECONDS, "it/d": 5.0}[c])
    plan = [rounds.next_round(), rounds.next_round()][1]
    assert (plan.seconds, set(plan.fits), plan.dropped) == (10.0, {"hr/a", "hr/b", "it/d"}, ["hr/c"])
    assert {fit.version for fit in plan.fits.values()} == {1}
    rounds = SynchronousRounds(lambda r: everybody, lambda c, now: now + SECONDS[c], deadline=1.5)
    plan = [rounds.next_round(), rounds.next_round()][1]
    assert (plan.seconds, set(plan.fits), plan.dropped) == (3.0, {"hr/a"}, ["hr/b", "hr/c"])


@st.composite
def federations(draw):
    """({client_id: seconds}, options of the schedule)."""
    seconds = {
        f"{department}/{client}": draw(st.sampled_from([1.0, 1.0, 1.5, 2.0, 20.0]))
        for department in "de"
        for client in range(draw(st.integers(1, 5)))
    }
    options = {
        "buffer": draw(st.integers(1, 4)),
        "concurrency": draw(st.none() | st.integers(1, 5)),
        "max_staleness": draw(st.none() | st.integers(0, 3)),
        "seed": draw(st.integers(0, 99)),
    }
    return seconds, options


@settings(max_examples=30, deadline=None)
@given(federations(), st.randoms(use_true_random=False))
def test_nobody_is_in_flight_twice_and_staleness_is_bounded_whatever_the_order_of_names(federation, shuffle):
    seconds, options = federation
    flying = {}

    def end_of_fit(client_id, now):
        assert flying.get(client_id, 0.0) <= now, "asked while in flight"
        flying[client_id] = now + seconds[client_id]
        return flying[client_id]

    departments = {d: [c for c in seconds if c[0] == d] for d in "de"}
    rounds = BufferedRounds(departments, end_of_fit, **options)
    names = list(seconds)
    shuffle.shuffle(names)
    other = buffered({name: seconds[name] for name in names}, **options)
    before, used = 0.0, {("d", 0), ("e", 0)}
    for number in range(1, 25):
        plan = rounds.next_round()
        assert plan == other.next_round()
        assert plan.round_num == number
        assert plan.seconds >= before
        before = plan.seconds
        (department,) = {client_id[0] for client_id in plan.fits}
        assert len(plan.fits) == min(options["buffer"], len(departments[department]))
        limit = options["max_staleness"]
        assert all(0 <= fit.staleness <= (number if limit is None else limit) for fit in plan.fits.values())
        # every state that a fit starts from was in use after the round before, or is that round's
        assert all((department, fit.version) in used or fit.version == number - 1 for fit in plan.fits.values())
        used = rounds.versions_in_use()


def test_replaying_many_clients_takes_no_training():
    clients = {f"d{d}": [f"d{d}/c{i}" for i in range(5_000)] for d in range(4)}
    draws = random.Random(1)
    seconds = {c: draws.uniform(1, 60) for ids in clients.values() for c in ids}
    rounds = BufferedRounds(clients, lambda c, now: now + seconds[c], buffer=16, concurrency=24, seed=3)
    plans = [rounds.next_round() for _ in range(200)]
    assert len({plan.seconds for plan in plans}) == 200
    assert sum(len(plan.fits) for plan in plans) == 3200


@pytest.mark.parametrize("concurrency", [1, 3, None])
def test_slots_are_filled_again_when_updates_arrive(concurrency):
    rounds = buffered({f"hr/{name}": 1.0 for name in "abcd"}, buffer=2, concurrency=concurrency)
    for _ in range(5):
        rounds.next_round()
        assert len(rounds._buffers.in_flight["hr"]) == min(concurrency or 4, 4)
