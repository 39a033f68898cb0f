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
        assert combine({name: shares[name] for name in names}, HOLDERS, needed=3) == secret
    assert combine(shares, HOLDERS, needed=3) == secret


def test_two_are_too_few_and_a_wrong_one_gives_another_secret():
    secret = os.urandom(32)
    shares = split(secret, HOLDERS, needed=3)
    with pytest.raises(SecureAggregationError, match="expected 3 shares of a secret, got 2"):
        combine({name: shares[name] for name in "ab"}, HOLDERS, needed=3)
    assert combine({**shares, "a": bytes(32)}, HOLDERS, needed=3) != secret
    with pytest.raises(SecureAggregationError, match="shares of 32 bytes"):
        combine({**shares, "a": bytes(3)}, HOLDERS, needed=3)


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
