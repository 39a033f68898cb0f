"""Noise in shares between a server and its sites, in memory: the sum, repeated rounds, accounts, lying servers."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import chi2
from secure_sites import RECORDS, SecureFederation

from fl_lightning.config import GuardConfig, PrivacyConfig
from fl_lightning.errors import RunError
from fl_lightning.network.coordinator import secure_clients
from fl_lightning.network.site.local_dp import LocalLedger
from fl_lightning.privacy import epsilon_of_shares
from fl_lightning.storage.messages import decode

pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")

LITTLE = 1e-6


@pytest.fixture
def federation(tmp_path, make_examples, monkeypatch):
    monkeypatch.setattr(secure_clients, "AWAY_SECONDS", 0.1)

    def make(network=None, **numbers):
        privacy = PrivacyConfig(**{"clip": 0.1, "noise_multiplier": 1.0, **numbers})
        choices = {"guard": GuardConfig("dp"), "weighting": "uniform", "privacy": privacy}
        return SecureFederation(tmp_path, make_examples, federation=choices, network=network)

    return make


def clipped_mean(play, clients=RECORDS, clip=0.1, round_num=1):
    """Every number of an update has moved by the same."""
    changes = [np.full(12, play.steps[c] * round_num) for c in clients]
    return np.mean([c * min(1, clip / np.linalg.norm(c)) for c in changes], axis=0)


def learns_nothing(play, clients):
    """Play a round that ends without a sum."""
    with pytest.raises(RunError, match="round 1: expected a masked sum of a department, got none"):
        play.round(clients)
    assert clients.masked_sums == {}


def account(play, client_id):
    path = play.site_folder(client_id) / "masked_releases.json"
    return json.loads(path.read_text())["releases"] if path.exists() else {}


@pytest.mark.parametrize("left", [RECORDS, ["hr/a", "hr/c", "hr/d"]], ids=["all", "one dropped out"])
def test_with_hardly_any_noise_the_sum_is_that_of_clipped_updates(federation, left):
    play = federation(noise_multiplier=LITTLE)
    clients = play.server()
    if len(left) < 4:
        play.lose("hr/b", "mask", after=False)
    mean = play.round(clients)
    assert mean.clients == sorted(left)
    np.testing.assert_allclose(mean.mean, clipped_mean(play, left), rtol=0, atol=1e-6)
    assert not np.allclose(mean.mean, [np.mean([play.steps[c] for c in left])] * 12, atol=1e-3)  # it was clipped


def test_the_sum_has_the_noise_of_all_who_stay(federation):
    play = federation()
    clients = play.server()
    noise = [(play.round(clients, n).mean - clipped_mean(play, round_num=n)) * 4 / 0.1 for n in range(1, 13)]
    variance = 4 / 2  # three of four must stay, and one of them may be curious
    low, high = chi2.ppf([1e-5, 1 - 1e-5], 144) / 144
    assert low * variance < np.square(noise).mean() < high * variance


def test_a_repeated_round_has_other_noise_and_is_counted_again(federation):
    play = federation()
    first = play.round(play.server())
    assert account(play, "hr/a") == {"5eed/1/1": 1.0}
    again = play.round(play.server(attempt=2))
    assert again.clients == first.clients
    assert np.abs(again.mean - first.mean).min() > 0
    assert account(play, "hr/a") == {"5eed/1/1": 1.0, "5eed/1/2": 1.0}
    ledger = LocalLedger(play.site_folder("hr/a") / "masked_releases.json", epsilon_of_shares)
    assert ledger.epsilon(1e-5) == pytest.approx(epsilon_of_shares(1.0, 2, 1e-5), rel=1e-6)


@pytest.mark.parametrize(("do", "counted"), [("fit", False), ("share", False), ("mask", True), ("unmask", True)])
def test_a_release_is_on_the_disk_before_the_masked_update_leaves(federation, do, counted):
    """Whether the sum is read or not: here two of four go away, and it is not."""
    play = federation()
    clients = play.server()
    play.post.meddle = lambda client_id, header, answer: (
        None if client_id in ("hr/b", "hr/c") and header["do"] == do else answer
    )
    learns_nothing(play, clients)
    assert bool(account(play, "hr/b")) == counted


def test_no_masked_update_leaves_if_it_cannot_be_counted(federation, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    play = federation()
    monkeypatch.setattr(LocalLedger, "record", full)
    answers = []
    play.post.meddle = lambda client_id, header, answer: (
        answers.append(decode(answer)) or answer if header["do"] == "mask" else answer
    )
    learns_nothing(play, play.server())
    assert len(answers) == 4
    assert all("no space left" in header["failed"] and not any(states) for header, states in answers)


@pytest.mark.parametrize("step", [math.nan, math.inf, 1e30])
def test_a_site_whose_update_cannot_be_used_sends_its_noise_and_says_so_in_its_own_log_only(federation, caplog, step):
    play = federation(noise_multiplier=LITTLE)
    play.fits["hr/b"].step = step
    answers = []
    play.post.meddle = lambda client_id, header, answer: (
        answers.append(decode(answer)[0]) or answer if client_id == "hr/b" and header["do"] == "fit" else answer
    )
    mean = play.round(play.server())
    assert mean.clients == sorted(RECORDS)
    others = 3 * clipped_mean(play, [c for c in RECORDS if c != "hr/b"])
    np.testing.assert_allclose(mean.mean, others / 4, rtol=0, atol=1e-6)
    assert "this site takes part with its noise alone" in caplog.text
    assert answers[0].keys() == {"client", "request_id", "keys", "site"}


@pytest.mark.parametrize("change", [{"noise_multiplier": 0.5}, {"clip": 5.0}, {"curious_clients": 0}])
def test_a_server_with_other_numbers_is_refused_by_the_sites(federation, change):
    from fl_lightning.network.compatibility import SharedSettings, find_mismatch

    play = federation()
    privacy = dataclasses.replace(play.config.federation.privacy, **change)
    other = dataclasses.replace(play.config, federation=dataclasses.replace(play.config.federation, privacy=privacy))
    site, server = (SharedSettings.of(config, "fp32", "ab") for config in (play.config, other))
    assert find_mismatch(site, server.to_dict()).startswith("federation.privacy: expected the same on both sides")


def test_a_server_that_lies_about_its_numbers_gets_the_sites_noise_or_nothing(federation):
    """It says that it has the sites' settings, and reckons with less noise."""
    play = federation()
    clients = play.server()
    less = dataclasses.replace(play.config.federation.privacy, noise_multiplier=1e-3)
    clients._federation = dataclasses.replace(play.config.federation, privacy=less)
    seen = []

    def meddle(client_id, header, answer):
        if header["do"] == "fit":
            header["secure"]["noise_multiplier"] = 1e-3
            seen.append(play.post.sites[client_id]._masking._round._client._terms.noise.multiplier)
        return answer

    play.post.meddle = meddle
    learns_nothing(play, clients)  # its own terms are not those that the sites have signed
    assert seen == [1.0] * 4


def test_the_number_of_sites_that_the_server_names_cannot_lower_the_noise(federation, caplog):
    """A hundred sites would need less noise each; but then more than four must be in the sum."""
    play = federation()
    clients = play.server()
    play.post.meddle = lambda client_id, header, answer: answer
    real = clients._round_of
    clients._round_of = lambda task, asked: real(task, 100)
    learns_nothing(play, clients)
    assert all(account(play, client_id) == {} for client_id in RECORDS)
    assert "expected at least 67 clients" in caplog.text
