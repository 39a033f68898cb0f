"""Who trains and who waits, where some clients are away; the order of draws is tested in test_virtual_time.py."""

import json

import pytest

from fl_lightning.federation.fit_buffers import FitBuffers, PlannedFit

CLIENTS = {"hr": ["hr/a", "hr/b", "hr/c"], "it": ["it/d"]}


def made(**options):
    return FitBuffers(CLIENTS, **{"buffer": 2, "seed": 7, **options})


def test_clients_that_are_away_take_no_slot_and_nobody_waits_for_them():
    buffers = made(buffer=3, concurrency=2)
    first = buffers.ask("hr")
    assert len(first) == 2
    assert buffers.ask("hr", closed=CLIENTS["hr"]) == []
    (other,) = buffers.ask("hr", away=[first[0], "it/d"])  # its slot is free
    assert {*first, other} == set(CLIENTS["hr"])
    assert buffers.ask("hr", away=CLIENTS["hr"]) == []
    assert buffers.arrive(first[1])
    assert not buffers.is_full("hr", away=[first[0]])  # it waits for the other one
    assert buffers.arrive(other)
    assert not buffers.is_full("hr")
    assert buffers.is_full("hr", away=[first[0]])
    assert buffers.is_full("hr", away=CLIENTS["hr"])  # who has answered counts, wherever it is now
    assert not buffers.is_full("it", away=["it/d"])  # an empty buffer is never full


def test_a_step_needs_its_fewest_updates_also_if_all_others_are_away():
    buffers = made(buffer=3, minimum=2)
    buffers.ask("hr")
    buffers.arrive("hr/a")
    assert not buffers.is_full("hr", away=["hr/b", "hr/c"])
    buffers.arrive("hr/b")
    assert buffers.is_full("hr", away=["hr/c"])


def test_a_lost_fit_is_asked_for_again_from_the_newest_state():
    buffers = made(buffer=1)
    buffers.ask("hr")
    buffers.arrive("hr/a")
    assert buffers.step("hr").fits == {"hr/a": PlannedFit("hr/a", 0, 0)}
    buffers.give_up("hr/c")
    assert sorted(buffers.ask("hr")) == ["hr/a", "hr/c"]
    assert [buffers.started(c) for c in CLIENTS["hr"]] == [(1, 1), (0, 0), (1, 1)]
    with pytest.raises(ValueError, match="it/d: expected a client in flight"):
        buffers.arrive("it/d")


def test_what_is_written_down_goes_on_where_it_was():
    buffers = made(max_staleness=0)
    for name in CLIENTS:
        buffers.ask(name)
    for client_id in ("hr/a", "hr/b"):
        buffers.arrive(client_id)
    buffers.step("hr")
    assert not buffers.arrive("hr/c")  # one step late: dropped
    buffers.arrive("it/d")
    copy = made(max_staleness=0)
    copy.restore(json.loads(json.dumps(buffers.to_dict())))
    assert copy.waiting() == ["it/d"]
    assert copy.versions_in_use() == buffers.versions_in_use() == {("it", 0)}
    plans = [b.step("it") for b in (buffers, copy)]
    assert plans[0] == plans[1]
    assert (plans[1].round_num, list(plans[1].dropped)) == (2, ["hr/c"])
    assert copy.ask("hr") == buffers.ask("hr")


def test_an_update_that_is_lost_on_disk_is_in_flight_again_as_it_was():
    buffers = made()
    buffers.ask("hr")
    for client_id in ("hr/a", "hr/b"):
        buffers.arrive(client_id)
    buffers.step("hr")
    buffers.arrive("hr/c")
    buffers.take_back("hr/c")
    assert buffers.started("hr/c") == (0, 0)
    assert buffers.waiting() == []
