import json

import pytest

from fl_lightning.clustering.hysteresis import no_partition, same_partition, update_partition

ONE, TWO, THREE = ({"a": 0, "b": x, "c": 1} for x in (0, 1, 2))


def score(partition):
    """By what b is with: a, c, or nobody."""
    return 0.5 if partition["b"] == partition["a"] else 0.6 if partition["b"] == partition["c"] else 0.7


def run(proposals, **options):
    state, held = no_partition(), []
    for proposed in proposals:
        state = update_partition(state, proposed, score, **options)
        held.append(state["held"])
    return held, state


def test_the_first_partition_is_held():
    assert run([ONE])[0] == [ONE]


def test_a_better_one_must_win_twice_running():
    held, state = run([ONE, TWO, TWO])
    assert held == [ONE, ONE, TWO]
    assert state["wins"] == 0


def test_wins_that_are_not_running_do_not_count():
    assert run([ONE, TWO, ONE, TWO])[0] == [ONE] * 4
    assert run([ONE, TWO, THREE, TWO])[0] == [ONE] * 4


def test_a_small_gain_is_no_reason():
    assert run([ONE, TWO, TWO, TWO], margin=0.11)[0] == [ONE] * 4
    assert run([TWO, ONE, ONE, ONE], margin=0.0)[0] == [TWO] * 4
    assert run([ONE, TWO, TWO], margin=0.09)[0][-1] == TWO


def test_patience_of_one_changes_at_once():
    assert run([ONE, TWO], patience=1)[0] == [ONE, TWO]


def test_numbers_do_not_make_a_partition():
    assert run([ONE, {"a": 5, "b": 5, "c": 3}])[0] == [ONE, ONE]
    assert run([ONE, {"a": 7, "b": 2, "c": 2}, {"a": 1, "b": 0, "c": 0}])[0][-1] == TWO


def test_departments_that_come_or_go_change_it_at_once_and_the_others_keep_their_numbers():
    held, _ = run([ONE, {"a": 1, "b": 1, "c": 0, "d": 0}, {"a": 0, "d": 1}])
    assert held[1:] == [{"a": 0, "b": 0, "c": 1, "d": 1}, {"a": 0, "d": 1}]


def test_a_number_is_never_given_out_twice():
    held, state = run([{"a": 0, "b": 1}, {"a": 0, "c": 1}, {"a": 0, "d": 1}])
    assert held == [{"a": 0, "b": 1}, {"a": 0, "c": 2}, {"a": 0, "d": 3}]
    assert state["numbers"] == 4


def test_the_state_goes_through_json():
    _, state = run([ONE, TWO])
    assert state["challenger"] == TWO
    again = update_partition(json.loads(json.dumps(state)), TWO, score)
    assert again["held"] == TWO


def test_the_state_given_is_left_alone():
    state = update_partition(no_partition(), ONE, score)
    before = json.dumps(state)
    update_partition(state, TWO, score)
    assert json.dumps(state) == before


def test_same_needs_the_same_departments():
    assert not same_partition({"a": 0}, {"a": 0, "b": 0})
    assert not same_partition(ONE, TWO)
    assert same_partition(ONE, {"c": 0, "b": 1, "a": 1})


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="proposed: expected at least one department"):
        update_partition(no_partition(), {}, score)
    with pytest.raises(ValueError, match="got margin -1, patience 2"):
        update_partition(no_partition(), ONE, score, margin=-1)
    with pytest.raises(ValueError, match=r"got margin 0.02, patience 0"):
        update_partition(no_partition(), ONE, score, patience=0)
