"""Canary clients against the mechanism: never above the account, near it, and above it if the noise is wrong."""

import numpy as np
import pytest

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'fl_lightning[privacy]'")

from fl_lightning.privacy import accountant, mechanism
from fl_lightning.privacy.audit.canary_directions import audit_mechanism
from fl_lightning.privacy.audit.one_run import epsilon_lower_bound
from fl_lightning.privacy.secure_aggregation import noise_shares
from fl_lightning.privacy.secure_aggregation.terms import NoiseTerms, Terms

OPTIONS = {"canaries": 100, "dimension": 4000, "noise_multiplier": 1.0, "rounds": 3, "delta": 1e-5}
QUIET = {**OPTIONS, "noise_multiplier": 4.0}
"""ε of 1.7, which 100 guesses can disprove (3.49 if all are right); that of `OPTIONS`, 8.4, they cannot."""


@pytest.fixture(scope="module")
def audits():
    return [audit_mechanism(**OPTIONS, seed=seed) for seed in range(20)]


def test_no_bound_is_above_the_accountants_epsilon():
    expected = accountant.epsilon(4.0, 3, 1e-5, clients=1, asked=1)
    for seed in range(20):
        audit = audit_mechanism(**QUIET, seed=seed)
        assert audit.upper == expected < audit.provable
        assert audit.epsilon == epsilon_lower_bound(100, 100, audit.correct, 1e-5)
        assert audit.epsilon <= audit.upper


def test_a_bound_is_above_the_accountants_epsilon_if_there_is_too_little_noise(monkeypatch):
    real = mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda key, name, count: real(key, name, count) / 10)
    bounds = [audit_mechanism(**QUIET, seed=seed) for seed in range(5)]
    assert all(audit.epsilon > audit.upper for audit in bounds)


def test_estimates_are_near_the_accountants_epsilon(audits):
    """Other canaries add T k / (2 d z²) = 4 % to the variance, so that the estimate is a little low."""
    mean, upper = np.mean([audit.estimate for audit in audits]), audits[0].upper
    assert 0.88 * upper < mean < 1.04 * upper
    covered = [audit.estimate_low <= upper / 1.02 <= audit.estimate_high for audit in audits]
    assert sum(covered) >= 16


def test_too_little_noise_is_seen(monkeypatch):
    real = mechanism.gaussian
    monkeypatch.setattr(mechanism, "gaussian", lambda key, name, count: real(key, name, count) / 4)
    audit = audit_mechanism(**OPTIONS, seed=0)
    assert audit.estimate_low > 2 * audit.upper


def test_updates_that_are_not_clipped_are_seen(monkeypatch):
    monkeypatch.setattr(mechanism, "norm", lambda update: 0.1)  # and sent four times as long
    real = mechanism._add
    monkeypatch.setattr(mechanism, "_add", lambda sums, update, factor, name: real(sums, update, 4 * factor, name))
    assert audit_mechanism(**{**OPTIONS, "dimension": 40_000}, seed=0).estimate_low > 2 * audit_mechanism_upper()


def audit_mechanism_upper():
    return accountant.epsilon(1.0, 3, 1e-5, clients=1, asked=1)


def shares(invited=4, multiplier=1.0):
    noise = NoiseTerms(1.0, multiplier)
    return Terms("run", "hr", 1, invited, OPTIONS["dimension"], max_weight=1, noise=noise)


def test_noise_in_shares_is_never_above_its_account_and_as_much_as_a_servers():
    """At its least, which for four clients is two shares of noise."""
    audits = [audit_mechanism(**OPTIONS, seed=seed, shares=shares()) for seed in range(8)]
    central = audit_mechanism_upper()
    for audit in audits:
        assert audit.upper == accountant.epsilon_of_shares(1.0, 3, 1e-5) > central
        assert 0 < audit.epsilon <= audit.upper
    assert 0.85 * central < np.mean([audit.estimate for audit in audits]) < 1.06 * central


@pytest.mark.parametrize("change", ["noise", "clipping"])
def test_too_little_noise_in_shares_and_updates_that_are_not_clipped_are_seen(monkeypatch, change):
    if change == "noise":
        real = noise_shares.noise_share
        monkeypatch.setattr(noise_shares, "noise_share", lambda *arguments: real(*arguments) // 4)
    else:
        clip = noise_shares.clip_and_round
        monkeypatch.setattr(
            noise_shares, "clip_and_round", lambda *arguments, **options: 4 * clip(*arguments, **options)
        )
    audit = audit_mechanism(**{**OPTIONS, "dimension": 40_000}, seed=0, shares=shares())
    assert audit.estimate_low > 2 * audit.upper


def test_the_same_seed_gives_the_same_audit():
    small = {**OPTIONS, "canaries": 20, "dimension": 200}
    assert audit_mechanism(**small, seed=4) == audit_mechanism(**small, seed=4)
    assert audit_mechanism(**small, seed=4) != audit_mechanism(**small, seed=5)


@pytest.mark.parametrize("change", [{"canaries": 3}, {"dimension": 0}, {"rounds": 0}, {"noise_multiplier": 0.0}])
def test_impossible_options_are_refused(change):
    with pytest.raises(ValueError, match="expected at least"):
        audit_mechanism(**{**OPTIONS, **change}, seed=0)
