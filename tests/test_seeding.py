import hashlib

from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.seeding import derive_seed

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 99)), max_size=4)


def test_seed_is_the_documented_hash():
    # sha256 over the run seed, then each part as 4 bytes of length and "type:value".
    message = b"7" + (6).to_bytes(4, "big") + b"str:hr" + (5).to_bytes(4, "big") + b"int:3"
    expected = int.from_bytes(hashlib.sha256(message).digest()[:8], "big") % 2**31
    assert derive_seed(7, "hr", 3) == expected


def test_every_part_changes_the_seed():
    seeds = {
        derive_seed(1234, "fit", 1, "hr", "client_0"),
        derive_seed(1235, "fit", 1, "hr", "client_0"),
        derive_seed(1234, "fit", 2, "hr", "client_0"),
        derive_seed(1234, "fit", 1, "it", "client_0"),
        derive_seed(1234, "fit", 1, "hr", "client_1"),
        derive_seed(1234, "fit", 1, "hr"),
    }
    assert len(seeds) == 6


def test_moving_a_letter_between_parts_changes_the_seed():
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")


def test_a_number_and_its_text_differ():
    assert derive_seed(0, 1) != derive_seed(0, "1")


def test_order_of_parts_matters():
    assert derive_seed(0, "a", "b") != derive_seed(0, "b", "a")


def test_two_thousand_clients_get_distinct_seeds():
    # Birthday bound: 2000² / 2 / 2³¹ ≈ 0.001 collisions expected.
    seeds = {derive_seed(1234, "fit", r, "hr", f"client_{c}") for r in range(20) for c in range(100)}
    assert len(seeds) == 2000


@given(st.integers(0, 2**64), PARTS)
def test_seed_is_repeatable_and_fits_torch_numpy_and_scikit_learn(run_seed, parts):
    seed = derive_seed(run_seed, *parts)
    assert seed == derive_seed(run_seed, *parts)
    assert 0 <= seed < 2**31
