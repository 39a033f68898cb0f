"""Secure aggregation between a server and its sites, joined in memory: sums, sites that drop out, repeated rounds."""

import hashlib
import json

import numpy as np
import pytest
import torch
from secure_sites import RECORDS, SecureFederation

from fl_lightning.config import LocalPrivacyConfig, MaskingConfig
from fl_lightning.errors import RunError
from fl_lightning.federation.journal import Journal
from fl_lightning.network.coordinator import secure_clients
from fl_lightning.network.masked_messages import MASKED
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.storage.messages import decode, encode


@pytest.fixture
def federation(tmp_path, make_examples, monkeypatch):
    monkeypatch.setattr(secure_clients, "AWAY_SECONDS", 0.1)
    return lambda **options: SecureFederation(tmp_path, make_examples, **options)


@pytest.mark.parametrize("weighting", ["examples", "tokens", "uniform"])
def test_the_sum_is_that_of_plain_averaging_within_the_stated_error(federation, weighting):
    play = federation(federation={"weighting": weighting, "masking": MaskingConfig(max_weight=65536)})
    clients = play.server()
    mean = play.round(clients)
    if weighting == "examples":
        expected, weight = play.mean(), sum(RECORDS.values())
    else:
        expected, weight = np.full(12, np.mean(list(play.steps.values()))), 4 if weighting == "uniform" else 4 * 77
    assert mean.clients == sorted(RECORDS)
    assert mean.weight == weight
    rounding = 2**-23  # of the sites' own updates, in fp32
    np.testing.assert_allclose(mean.mean, expected, rtol=0, atol=mean.error + rounding)
    assert 0 < mean.error < 2e-3 / weight
    assert play.round(clients, 2).weight == weight
    steps = ("fit", "share", "mask", "sign", "unmask")
    assert [header["do"] for _, (header, _), _ in play.post.sent][-20:] == [do for do in steps for _ in RECORDS]


def test_bytes_of_the_protocol_are_counted(federation):
    play = federation()
    mean = play.round(play.server())
    names, shares = 4, 12 + 64 + 16
    one = 128 + 3 * (shares + names) + 32 + 4 * 13 + 64 + 4 * (32 + names)
    assert mean.bytes_up == dict.fromkeys(RECORDS, one)
    assert set(mean.bytes_down.values()) == {4 * (128 + names) + 3 * (shares + names) + 4 * names + 4 * names + 4 * 68}


@pytest.mark.parametrize(
    ("do", "after", "left"),
    [
        ("fit", False, ["hr/a", "hr/c", "hr/d"]),  # before its keys are out
        ("fit", True, ["hr/a", "hr/c", "hr/d"]),  # after
        ("share", True, ["hr/a", "hr/c", "hr/d"]),
        ("mask", False, ["hr/a", "hr/c", "hr/d"]),
        ("mask", True, ["hr/a", "hr/b", "hr/c", "hr/d"]),  # its masked update has arrived
        ("sign", True, ["hr/a", "hr/b", "hr/c", "hr/d"]),
    ],
)
def test_a_round_goes_on_without_a_site_that_is_killed(federation, caplog, do, after, left):
    play = federation()
    clients = play.server()
    play.lose("hr/b", do, after=after)
    mean = play.round(clients)
    assert mean.clients == left
    np.testing.assert_allclose(mean.mean, play.mean(*left), rtol=0, atol=mean.error + 2**-23)
    assert "hr/b" in caplog.text
    # It comes back and takes part in the next round, from its disk.
    play.restart("hr/b")
    play.post.meddle = lambda client_id, header, answer: answer
    assert play.round(clients, 2).clients == sorted(RECORDS)


@pytest.mark.parametrize("do", ["fit", "share", "mask", "sign", "unmask"])
def test_below_the_threshold_nothing_is_learned(federation, caplog, do):
    play = federation()
    clients = play.server()
    play.post.meddle = lambda client_id, header, answer: (
        None if client_id in ("hr/b", "hr/c") and header["do"] == do else answer
    )
    with pytest.raises(RunError, match="round 1: expected a masked sum of a department, got none"):
        play.round(clients)
    assert "hr in round 1" in caplog.text
    assert "its state is kept" in caplog.text
    assert clients.masked_sums == {}


def test_another_department_is_not_held_up(federation, caplog):
    records = {**RECORDS, **{c.replace("hr", "it"): n for c, n in RECORDS.items()}}
    play = federation(records=records)
    clients = play.server()
    play.post.meddle = lambda client_id, header, answer: (
        None if client_id in ("hr/b", "hr/c") and header["do"] == "mask" else answer
    )
    assert play.round(clients) is None
    assert clients.masked_sums["it"].clients == [f"it/{name}" for name in "abcd"]
    assert "hr in round 1" in caplog.text


def test_a_lost_answer_is_given_again(federation, monkeypatch):
    """The site answers a request that comes twice as before: no new keys, no second sum."""
    monkeypatch.setattr("fl_lightning.network.coordinator.requests.RETRY_SECONDS", 0.01)
    play = federation(network={"deadline": 5.0})
    lost = set()

    def meddle(client_id, header, answer):
        key = client_id, header["do"]
        if client_id == "hr/b" and header["do"] != "hello" and key not in lost:
            lost.add(key)
            return "the connection broke"
        return answer

    play.post.meddle = meddle
    mean = play.round(play.server())
    assert mean.clients == sorted(RECORDS)
    np.testing.assert_allclose(mean.mean, play.mean(), rtol=0, atol=mean.error + 2**-23)
    assert len(lost) == 5
    assert len(play.fits["hr/b"].tasks) == 1


def test_a_site_that_was_restarted_takes_part_in_an_attempt_once(federation, caplog):
    play = federation(network={"deadline": 5.0})

    def meddle(client_id, header, answer):
        if client_id == "hr/b" and header["do"] == "fit" and play.post.here["hr/b"] == "1":
            play.restart("hr/b")  # its keys are on the disk, and it had no time to answer
            play.post.here["hr/b"] = "2"
            return None
        return answer

    play.post.meddle = meddle
    clients = play.server()
    mean = play.round(clients)
    assert mean.clients == ["hr/a", "hr/c", "hr/d"]
    assert "hr/b refuses: expected a round after 1, got 1" in caplog.text


def test_quorum_ends_the_wait_for_a_site_that_hangs(federation):
    play = federation(network={"deadline": 60.0, "quorum": 0.75})
    clients = play.server()
    play.lose("hr/b", "share", after=False)
    assert play.round(clients).clients == ["hr/a", "hr/c", "hr/d"]


def test_a_quorum_below_the_threshold_does_not_end_a_round_too_early(federation, monkeypatch):
    play = federation(network={"deadline": 60.0, "quorum": 0.25})
    clients, receive, turns = play.server(), play.post.receive, iter(range(10**6))
    monkeypatch.setattr(play.post, "receive", lambda timeout: receive(timeout) if next(turns) % 2 else None)
    assert len(play.round(clients).clients) == 3  # the fourth answer of each step comes too late


def test_a_server_that_is_killed_after_a_sum_has_it_in_its_journal(federation, tmp_path):
    play = federation()
    writer = BackgroundWriter()
    journal = Journal(tmp_path / "checkpoints", writer)
    mean = play.round(play.server(), journal=journal)
    writer.close()
    count = len(play.post.sent)
    again = Journal(tmp_path / "checkpoints", BackgroundWriter())
    clients = play.server(attempt=2)
    asked = len(play.post.sent) - count
    resumed = play.round(clients, journal=again)
    assert len(play.post.sent) - count == asked  # nobody is asked for the round
    assert resumed.mean.tobytes() == mean.mean.tobytes()
    assert vars(resumed).keys() == vars(mean).keys()
    assert (resumed.weight, resumed.clients, resumed.error) == (mean.weight, mean.clients, mean.error)
    assert (resumed.bytes_up, resumed.bytes_down) == (mean.bytes_up, mean.bytes_down)


@pytest.mark.parametrize("do", ["fit", "share", "mask", "sign", "unmask"])
def test_a_server_that_is_killed_before_a_sum_gets_the_same_one(federation, do):
    play = federation()
    expected = SecureFederation.round(play, play.server(run="another"))

    class Killed(BaseException):
        pass

    def meddle(client_id, header, answer):
        if header["do"] == do and client_id == "hr/c":
            raise Killed
        return answer

    clients = play.server()
    play.post.meddle = meddle
    with pytest.raises(Killed):
        play.round(clients)
    play.post.meddle = lambda client_id, header, answer: answer
    play.post.inbox.clear()
    play.restart("hr/d")
    resumed = play.round(play.server(attempt=2))
    assert resumed.mean.tobytes() == expected.mean.tobytes()
    with pytest.raises(RunError, match="got none"):  # without a new number the sites take no part
        play.round(play.server(attempt=2))
    entry = json.loads((play.site_folder("hr/a") / "5eed" / "masked_rounds.json").read_text())["rounds"]["1"]
    assert entry == {"attempt": 2, "signed": hashlib.sha256("\n".join(sorted(RECORDS)).encode()).hexdigest()}


def test_a_repeated_round_can_only_be_the_same_sum(federation, caplog):
    """Two sums of the same updates that differ in one site would show that site's update."""
    play = federation()
    assert play.round(play.server()).clients == sorted(RECORDS)
    play.lose("hr/b", "fit", after=False)
    assert play.round(play.server(attempt=2)) is None
    assert "expected the sum that this site has signed before, got one of other sites" in caplog.text
    play.post.meddle = lambda client_id, header, answer: answer
    assert play.round(play.server(attempt=3)).clients == sorted(RECORDS)


def test_what_the_server_holds_has_no_single_update_and_nothing_of_one(federation):
    play = federation()
    answers = []

    def meddle(client_id, header, answer):
        answers.append((header["do"], answer))
        return answer

    play.post.meddle = meddle
    clients = play.server()
    mean = play.round(clients)
    updates = {c: np.full(12, np.float32(play.steps[c])) for c in RECORDS}
    for do, answer in answers:
        header, states = decode(answer)
        text = json.dumps(header)
        assert not any(word in text for word in ("loss", "metrics", "seconds", "num_"))
        if do == "mask":
            assert list(states[0]) == [MASKED]
            masked = states[0][MASKED].numpy()
            assert (masked.dtype, len(set(masked.tolist()))) == (np.int32, 13)
        else:
            assert states == []
        for update in updates.values():
            assert update.astype(np.float32).tobytes() not in answer
            assert update.tobytes() not in answer
    # Nor has what is kept of the round.
    assert all(not np.allclose(mean.mean, update) for update in updates.values())
    assert {c: (info.train, info.tokens) for c, info in clients.sites.items()} == dict.fromkeys(RECORDS, (1, 0))


def test_masked_inputs_do_not_depend_on_the_updates(federation, tmp_path, make_examples):
    """Same sum, other updates: each bit of what the server gets is a fair coin in both, and the sum is the same."""
    bits, sums = [], []
    for changed in (False, True):
        folder = tmp_path / str(changed)
        folder.mkdir()
        play = SecureFederation(folder, make_examples, federation={"weighting": "uniform"})
        if changed:
            for fits, step in zip(play.fits.values(), (0.5, -0.25, 0.125, -0.395), strict=True):
                fits.step = step
        got = []

        def meddle(client_id, header, answer, got=got):
            if header["do"] == "mask":
                got.append(decode(answer)[1][0][MASKED].numpy().view(np.uint32))
            return answer

        play.post.meddle = meddle
        clients = play.server()
        for round_num in range(1, 13):
            for fits in play.fits.values():
                fits.step = fits.step if round_num == 1 else fits.step * (round_num - 1) / round_num
            sums.append(play.round(clients, round_num).mean)
        words = np.concatenate(got)
        bits.append(np.unpackbits(words.view(np.uint8)))
    half = len(sums) // 2
    assert all(np.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(sums[:half], sums[half:], strict=True))
    for coins in bits:  # 12 rounds, 4 sites, 13 words: 19,968 bits, standard deviation 0.0035
        assert len(coins) == 19_968
        assert abs(coins.mean() - 0.5) < 5 * 0.0035


def test_a_department_of_two_is_not_asked(federation):
    play = federation()
    clients = play.server()
    tasks = play.tasks()[:1]
    with pytest.raises(RunError, match="round 1: hr: federation.masking: invited: expected 2 to 100,000 clients"):
        list(clients.fit(tasks))


def test_a_site_whose_update_does_not_fit_says_why_in_its_own_log_only(federation, caplog):
    play = federation()
    play.fits["hr/b"].step = 9.0
    clients = play.server()
    answers = []

    def meddle(client_id, header, answer):
        if (client_id, header["do"]) == ("hr/b", "fit"):
            answers.append(decode(answer)[0])
        return answer

    play.post.meddle = meddle
    assert play.round(clients).clients == ["hr/a", "hr/c", "hr/d"]
    assert "largest change of an element: expected at most 4 (federation.masking.bound), got 9" in caplog.text
    (answer,) = answers
    assert answer["failed"] == "SecureAggregationError: the update does not fit; the site's log says why"


@pytest.mark.parametrize("spoiled", [{"masked": torch.zeros(13)}, {"masked": torch.zeros(12, dtype=torch.int32)}, {}])
def test_a_masked_update_of_another_form_is_refused(federation, spoiled):
    play = federation()
    clients = play.server()

    def meddle(client_id, header, answer):
        if client_id == "hr/b" and header["do"] == "mask":
            return encode(decode(answer)[0], [spoiled] if spoiled else [])
        return answer

    play.post.meddle = meddle
    assert play.round(clients).clients == ["hr/a", "hr/c", "hr/d"]
    assert clients.traffic["refused"] == 1


@pytest.mark.parametrize("do", ["fit", "share", "sign", "unmask"])
@pytest.mark.parametrize("garbage", [{"keys": 3, "shares": 3, "seed_digest": 3, "signature": 3, "seeds": 3}, {}])
def test_a_site_that_answers_garbage_has_dropped_out(federation, do, garbage):
    play = federation()
    clients = play.server()

    def meddle(client_id, header, answer):
        if client_id == "hr/b" and header["do"] == do:
            values = decode(answer)[0]
            kept = {name: values[name] for name in ("client", "request_id", "site") if name in values}
            return encode({**kept, **garbage})
        return answer

    play.post.meddle = meddle
    mean = play.round(clients)
    assert ("hr/b" in mean.clients) == (do in ("sign", "unmask"))
    np.testing.assert_allclose(mean.mean, play.mean(*mean.clients), rtol=0, atol=mean.error + 2**-23)


def test_a_site_clips_and_adds_noise_before_it_masks(federation, tmp_path):
    play = federation(network={"local_privacy": LocalPrivacyConfig(clip=0.01)})
    mean = play.round(play.server())
    sign = sum(n * np.sign(play.steps[c]) for c, n in RECORDS.items()) / sum(RECORDS.values())
    np.testing.assert_allclose(mean.mean, np.full(12, sign * 0.01 / np.sqrt(12)), rtol=0, atol=mean.error + 2**-23)


def test_noise_of_a_site_is_the_same_in_a_repeated_round(federation):
    pytest.importorskip("dp_accounting")
    play = federation(network={"local_privacy": LocalPrivacyConfig(clip=0.01, noise_multiplier=4.0)})
    first, again = (play.round(play.server(attempt=attempt)) for attempt in (1, 2))
    assert first.mean.std() > 0.005
    assert first.mean.tobytes() == again.mean.tobytes()
    assert len(json.loads((play.site_folder("hr/a") / "releases.json").read_text())["releases"]) == 1
