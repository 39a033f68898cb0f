import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data.partition.strategies import (
    SCHEMES,
    Scheme,
    deal,
    label_counts,
    proportional_sizes,
    split_indices,
)
from fl_lightning.errors import InputError

LABELS = ["bill", "card", "loan", "rent"] * 30


def dealt(scheme, parts=3, count=120, seed=1, labels=LABELS):
    return split_indices(range(count), parts, scheme, labels, seed, "--departments")


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("count", [120, 119, 101])
def test_every_record_goes_to_one_part_and_seeds_repeat(name, count):
    scheme = Scheme(name, sizes=(3, 2, 1))
    found = dealt(scheme, count=count)
    assert sorted(itertools.chain(*found)) == list(range(count))
    assert found == dealt(scheme, count=count)
    assert found != dealt(scheme, count=count, seed=2)
    assert all(part == sorted(part) for part in found)


def test_iid_parts_differ_by_one_record_at_most():
    assert sorted(map(len, dealt(Scheme("iid"), 7))) == [17, 17, 17, 17, 17, 17, 18]


def test_sizes_are_in_proportion():
    assert list(map(len, dealt(Scheme("sizes", sizes=(3, 2, 1))))) == [60, 40, 20]


def test_shards_give_each_part_few_labels():
    found = dealt(Scheme("shards", shards=1), 4)
    assert sorted(Counter(LABELS[i] for i in part).most_common() for part in found) == [
        [(name, 30)] for name in ("bill", "card", "loan", "rent")
    ]


def test_small_alpha_is_one_sided_and_large_alpha_is_even():
    def largest_share(alpha):
        parts = dealt(Scheme("dirichlet", alpha=alpha))
        return [max(Counter(LABELS[i] for i in part).values()) / len(part) for part in parts]

    assert max(largest_share(1e4)) < 0.3
    assert min(largest_share(0.05)) > 0.4


def test_dirichlet_keeps_its_least_or_says_that_it_cannot():
    assert min(map(len, dealt(Scheme("dirichlet", alpha=0.5, min_records=10)))) >= 10
    with pytest.raises(InputError, match="dirichlet leaves a part with fewer than 60 records"):
        dealt(Scheme("dirichlet", alpha=0.5, min_records=60))


def test_what_a_scheme_lacks_is_named():
    with pytest.raises(InputError, match="--scheme shards: no label; expected --label COLUMN"):
        dealt(Scheme("shards"), labels=None)
    with pytest.raises(InputError, match="--sizes: --departments: expected 3 numbers, .* got 2"):
        dealt(Scheme("sizes", sizes=(1, 2)))
    with pytest.raises(InputError, match="--departments: expected at least one record for each of 3 parts, got 2"):
        dealt(Scheme("iid"), count=2)


def deal_all(departments, clients, count=24, **more):
    return deal(count, departments, clients, scheme=Scheme(), client_scheme=Scheme(), labels=None, seed=0, **more)


def test_columns_name_departments_and_clients():
    departments = ["hr", "finance"] * 12
    clients = ["ann", "ann", "bob", "bob"] * 6
    shares = deal_all(departments, clients)
    assert {d: list(c) for d, c in shares.items()} == {"finance": ["ann", "bob"], "hr": ["ann", "bob"]}
    assert shares["hr"]["bob"] == [2, 6, 10, 14, 18, 22]


def test_numbers_of_departments_and_clients():
    shares = deal_all(2, 3)
    assert {d: list(c) for d, c in shares.items()} == {
        f"department_{d}": ["client_0", "client_1", "client_2"] for d in (0, 1)
    }
    assert [len(part) for clients in shares.values() for part in clients.values()] == [4] * 6


def test_dirichlet_departments_leave_enough_for_their_clients():
    scheme = Scheme("dirichlet", alpha=0.1, min_records=4)
    shares = deal(120, 3, 4, scheme=scheme, client_scheme=Scheme(), labels=LABELS, seed=0)
    assert all(len(part) >= 4 for clients in shares.values() for part in clients.values())


def test_client_with_one_record_is_refused():
    with pytest.raises(InputError, match=r"b/client_0: expected at least 2 records"):
        deal_all(["a", "a", "b"], 1, count=3)


def test_label_counts_are_worked_by_hand():
    counts = label_counts({"hr": {"c": [0, 1, 2], "d": [3]}}, ["x", "y", "x", "y"])
    assert counts == {"hr/c": {"x": 2, "y": 1}, "hr/d": {"x": 0, "y": 1}}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(8, 1000))
def test_proportional_adds_up_and_is_near(sizes, total):
    found = proportional_sizes(sizes, total)
    assert sum(found) == total
    assert min(found) >= 1
    assert all(abs(n - total * s / sum(sizes)) <= len(sizes) for n, s in zip(found, sizes, strict=True))
