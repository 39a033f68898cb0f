import itertools

import numpy as np
import pytest

from fl_lightning.clustering.label_matching import match_labels


def num_kept(previous, current):
    return sum(previous.get(name) == label for name, label in current.items())


def test_the_same_partition_keeps_its_numbers():
    assert match_labels({"a": 3, "b": 1, "c": 3}, {"a": 0, "b": 1, "c": 0}) == {"a": 3, "b": 1, "c": 3}


def test_a_cluster_that_splits_leaves_its_number_to_the_larger_part():
    assert match_labels(dict.fromkeys("abcde", 0), dict(zip("abcde", [0, 0, 1, 1, 1], strict=True))) == {
        "a": 1, "b": 1, "c": 0, "d": 0, "e": 0,
    }  # fmt: skip


def test_clusters_that_merge_take_the_number_of_the_larger():
    assert match_labels({"a": 0, "b": 1, "c": 1}, {"a": 0, "b": 0, "c": 0}) == {"a": 1, "b": 1, "c": 1}


def test_departments_may_come_and_go():
    assert match_labels({"a": 0, "b": 1, "c": 2}, {"b": 0, "d": 0, "e": 1}) == {"b": 1, "d": 1, "e": 3}


def test_without_a_past_numbers_go_by_first_appearance():
    assert match_labels({}, {"b": 7, "a": 9, "c": 7}) == {"a": 0, "b": 1, "c": 1}


def test_numbers_taken_before_are_not_used_again():
    assert match_labels({"a": 0}, {"a": 0, "b": 1}, used=[4, 2]) == {"a": 0, "b": 5}


def test_greed_would_keep_fewer():
    # New x shares 3 with old 0 and 2 with old 1; y shares 2 with old 0. Greedy: 3 kept; best: 2 + 2.
    previous = dict(zip("abcdefg", [0, 0, 0, 1, 1, 0, 0], strict=True))
    current = dict(zip("abcdefg", [0, 0, 0, 0, 0, 1, 1], strict=True))
    assert num_kept(previous, match_labels(previous, current)) == 4


@pytest.mark.parametrize("seed", range(5))
def test_no_other_numbers_keep_more(seed):
    draw = np.random.default_rng(seed)
    previous = {name: int(draw.integers(3)) for name in "abcdefgh"}
    current = {name: int(draw.integers(3)) for name in "abcdefgh"}
    best = max(num_kept(previous, {n: p[c] for n, c in current.items()}) for p in itertools.permutations(range(3)))
    result = match_labels(previous, current)
    assert num_kept(previous, result) == best
    for first, second in itertools.combinations("abcdefgh", 2):
        assert (result[first] == result[second]) == (current[first] == current[second])
