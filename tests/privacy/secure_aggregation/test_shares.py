import itertools
import os

import numpy as np
import pytest
from scipy.stats import chisquare

from fl_lightning.privacy.secure_aggregation.shares import combine, split
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

HOLDERS = ["a", "b", "c", "d", "e"]


def test_any_three_of_five_restore_a_secret():
    secret = os.urandom(32)
    shares = split(secret, HOLDERS, needed=3)
    for names in itertools.combinations(HOLDERS, 3):
        assert combine({name: shares[name] for name in names}, HOLDERS, 3, secret.__eq__) == secret
    assert combine(shares, HOLDERS, 3, secret.__eq__) == secret


def test_two_are_too_few():
    secret = os.urandom(32)
    shares = split(secret, HOLDERS, needed=3)
    for two in ({"a", "b"}, {"d", "e"}):
        with pytest.raises(SecureAggregationError, match="expected 3 shares of a secret, got 2"):
            combine({name: shares[name] for name in two}, HOLDERS, 3, secret.__eq__)
    with pytest.raises(SecureAggregationError, match="expected 3 shares of a secret, got 2"):
        combine({"a": bytes(3), "b": shares["b"], "c": shares["c"]}, HOLDERS, 3, secret.__eq__)


@pytest.mark.parametrize("wrong", [names for n in (1, 2) for names in itertools.combinations(HOLDERS, n)])
def test_three_right_shares_of_five_are_found_whichever_are_wrong(wrong):
    secret = os.urandom(32)
    shares = split(secret, HOLDERS, needed=3) | {name: os.urandom(32) for name in wrong}
    assert combine(shares, HOLDERS, 3, secret.__eq__) == secret


def test_a_secret_of_which_two_shares_are_right_is_not_found():
    secret = os.urandom(32)
    shares = split(secret, HOLDERS, needed=3) | {name: os.urandom(32) for name in "abc"}
    with pytest.raises(SecureAggregationError, match="have given wrong ones"):
        combine(shares, HOLDERS, 3, secret.__eq__)


def test_fewer_shares_than_needed_are_uniform_whatever_the_secret():
    for secret in (bytes(32), b"\xff" * 32):
        drawn = b"".join(split(secret, HOLDERS[:3], needed=3)["b"] for _ in range(800))
        counts = np.bincount(np.frombuffer(drawn, dtype=np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-6


def test_halves_have_polynomials_of_their_own():
    shares = split(bytes(32), HOLDERS, needed=3)
    assert all(share[:16] != share[16:] for share in shares.values())


def test_bad_arguments():
    with pytest.raises(ValueError, match="32 bytes"):
        split(b"short", HOLDERS, needed=3)
    with pytest.raises(ValueError, match="1 to 5 shares"):
        split(bytes(32), HOLDERS, needed=6)
