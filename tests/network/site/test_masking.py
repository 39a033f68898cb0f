"""What a server that does not follow the protocol asks a site for, message by message, and the site that refuses it."""

import pytest
from secure_sites import RECORDS, SecureFederation

from fl_lightning.errors import RunError
from fl_lightning.network.coordinator import secure_clients
from fl_lightning.network.masked_messages import keys_to_json
from fl_lightning.privacy.secure_aggregation import agreement
from fl_lightning.privacy.secure_aggregation.client import advertised_text
from fl_lightning.privacy.secure_aggregation.messages import Advertisement
from fl_lightning.provenance.signing import key_at
from fl_lightning.storage.messages import decode, encode


@pytest.fixture
def play(tmp_path, make_examples, monkeypatch):
    monkeypatch.setattr(secure_clients, "AWAY_SECONDS", 0.05)
    return SecureFederation(tmp_path, make_examples)


def lie(play, do, change, to="hr/a"):
    """The server's requests of a kind to one site are changed before they arrive; {request: the site's answer}."""
    answers = {}
    site = play.post.sites[to]
    handle = site.handle

    def lied(message):
        header, states = decode(message)
        if header["do"] == do:
            header["masked"] = change(header["masked"])
            message = encode(header, states)
        answer = handle(message)
        answers[header["do"]] = decode(answer)[0]
        return answer

    site.handle = lied
    return answers


def nothing(play):
    """Whether the server's round has no sum."""
    with pytest.raises(RunError, match="expected a masked sum of a department, got none"):
        play.round(play.server())
    return True


def refusal(answers, do):
    return answers[do]["failed"]


def test_an_honest_one_is_not_refused(play):
    answers = lie(play, "unmask", lambda content: content)
    assert play.round(play.server()).clients == sorted(RECORDS)
    assert not any("failed" in answer for answer in answers.values())


def forged(play, client_id, identity):
    """Keys of a client that somebody else has made and signed."""
    keys = agreement.public_key(b"m" * 32), agreement.public_key(b"s" * 32)
    terms = play.post.sites["hr/a"]._masking._round._client._terms
    text = advertised_text(terms, client_id, Advertisement(*keys, b""))
    return keys_to_json(Advertisement(*keys, agreement.sign(identity, text)))


def test_swaps_a_sites_key(play):
    answers = lie(play, "share", lambda keys: {**keys, "hr/b": {**keys["hr/b"], "mask_key": "01" * 32}})
    assert play.round(play.server()).clients == ["hr/b", "hr/c", "hr/d"]
    assert "hr/a refuses: the keys of hr/b are not signed by hr/b for this round" in refusal(answers, "share")


def test_signs_a_swapped_key_with_an_identity_of_its_own(play):
    answers = lie(play, "share", lambda keys: {**keys, "hr/b": forged(play, "hr/b", b"server" + bytes(26))})
    play.round(play.server())
    assert "the keys of hr/b are not signed by hr/b for this round" in refusal(answers, "share")


def test_the_identity_with_which_a_site_joins_at_the_server_counts_for_nothing(play, tmp_path):
    """A man in the middle at the server: hr/b's place is taken, with a key that the server says is hr/b's."""
    key = key_at(tmp_path / "impostor")
    honest = dict(play.keys)
    play.keys["hr/b"] = key
    play.write_roster(play.keys)  # the roster of the impostor's machine
    impostor_key = (play.site_folder("hr/b") / "sign.key", play.site_folder("hr/b") / "sign.key.pub")
    for path in impostor_key:
        path.unlink()
    (tmp_path / "impostor").rename(impostor_key[0])
    play.restart("hr/b")
    play.write_roster(honest)
    answers = lie(play, "share", lambda content: content)
    assert nothing(play)
    assert "the keys of hr/b are not signed by hr/b" in refusal(answers, "share")


def test_replays_the_keys_of_an_old_round(play):
    old = {}
    answers = lie(play, "share", lambda keys: old.setdefault("keys", keys))
    clients = play.server()
    assert play.round(clients).clients == sorted(RECORDS)
    old_b = old["keys"]["hr/b"]
    play.restart("hr/a")
    answers = lie(play, "share", lambda keys: {**keys, "hr/b": old_b})
    assert play.round(clients, 2).clients == ["hr/b", "hr/c", "hr/d"]
    assert "the keys of hr/b are not signed by hr/b for this round" in refusal(answers, "share")


def test_replays_the_keys_of_an_old_attempt(play):
    old = {}
    lie(play, "share", lambda keys: old.setdefault("keys", keys))
    play.round(play.server())
    play.restart("hr/a")
    answers = lie(play, "share", lambda keys: {**keys, "hr/b": old["keys"]["hr/b"]})
    play.round(play.server(attempt=2))
    assert "the keys of hr/b are not signed by hr/b for this round" in refusal(answers, "share")


def test_brings_a_site_that_the_roster_does_not_have(play):
    answers = lie(play, "share", lambda keys: {n: v for n, v in keys.items() if n != "hr/b"} | {"hr/x": keys["hr/b"]})
    play.round(play.server())
    assert "hr/a refuses: hr/x is not in the roster" in refusal(answers, "share")


def test_shows_too_few_sites(play):
    answers = lie(play, "share", lambda keys: {name: keys[name] for name in ("hr/a", "hr/b")})
    play.round(play.server())
    assert "expected the keys of 3 to 4 clients, got 2" in refusal(answers, "share")


def test_says_that_a_site_has_dropped_out_whose_input_has_been_signed(play):
    def without_b(request):
        return {**request, "survivors": [n for n in request["survivors"] if n != "hr/b"], "dropped": ["hr/b"]}

    answers = lie(play, "unmask", without_b)
    play.round(play.server())
    assert "other survivors than those that were signed" in refusal(answers, "unmask")


def test_tells_sites_different_survivors(play):
    """hr/a and hr/b hear that hr/d dropped out, the others that it did not: nobody reveals anything."""
    for client_id in ("hr/a", "hr/b"):
        lie(play, "sign", lambda names: [name for name in names if name != "hr/d"], to=client_id)
    assert nothing(play)
    assert play.post.asked("unmask") == []


def test_asks_for_both_secrets_of_a_site(play):
    answers = lie(play, "unmask", lambda request: {**request, "dropped": ["hr/b"]})
    play.round(play.server())
    assert "the server asks for both secrets of hr/b" in refusal(answers, "unmask")


def test_keeps_signatures_back(play):
    answers = lie(play, "unmask", lambda request: {**request, "signatures": {}})
    play.round(play.server())
    assert "expected 3 signatures on the list of survivors, got 0" in refusal(answers, "unmask")


def test_asks_for_fewer_sites_than_the_site_allows(play, tmp_path):
    """The limits are those of the site's own config, whatever the server says."""
    answers = lie(play, "sign", lambda names: names[:2])
    play.round(play.server())
    assert "expected a sum of at least 3 clients, got 2" in refusal(answers, "sign")


def request(play, do, client_id="hr/a", **changes):
    """A request of a server that has been sent before, changed; the site's answer."""
    header, states = next(
        message for asked, message, _ in reversed(play.post.sent) if (asked, message[0]["do"]) == (client_id, do)
    )
    request_id = {**header["request_id"], "task": f"{len(play.post.sent)} {changes}", **changes.pop("request_id", {})}
    return decode(play.post.sites[client_id].handle(encode({**header, **changes, "request_id": request_id}, states)))


def test_asks_for_another_masked_update(play):
    play.round(play.server())
    header, states = request(play, "mask")
    assert "hr/a refuses: expected the step end of this round, got mask" in header["failed"]
    assert states == []


def test_asks_for_a_step_of_another_round_or_attempt(play):
    play.round(play.server())
    for changes in ({"secure": {"attempt": 2, "invited": 4}}, {"request_id": {"round": 2}}):
        header, _ = request(play, "unmask", **changes)
        assert "hr/a takes no part in this attempt of the round" in header["failed"]


def test_asks_for_a_fit_of_an_old_round_in_a_new_one(play):
    """Else one update would be in two sums."""
    play.round(play.server())
    for task in ({}, {"started_round": 1, "round_num": 2}):
        header = next(message[0] for _, message, _ in play.post.sent if message[0]["do"] == "fit")
        changed = {**header["task"], **task}
        answer, _ = request(play, "fit", request_id={"round": 2}, task=changed)
        assert "hr/a refuses: expected a task of round 2, got one of another" in answer["failed"]


@pytest.mark.parametrize("secure", [None, 3, {}, {"attempt": 0, "invited": 4}, {"attempt": True, "invited": 4}])
def test_asks_for_an_update_without_masks(play, secure):
    play.round(play.server())
    header, states = request(play, "fit", secure=secure)
    assert "expected" in header["failed"]
    assert states == []
    assert header.keys() == {"client", "request_id", "failed"}


def test_asks_a_site_without_secure_aggregation_for_a_step(play, make_examples):
    from dataclasses import replace

    plain = replace(play.config, federation=replace(play.config.federation, secure_aggregation=False))
    site = play.make_site("hr/a", plain)
    play.round(play.server())
    play.post.sites["hr/a"] = site
    assert "federation.secure_aggregation: expected the same on both sides" in request(play, "mask")[0]["refused"]


@pytest.mark.parametrize("content", [None, 3, [], {"hr/b": 3}, {"hr/b": "zz"}, {"hr/b": {"mask_key": "00"}}])
@pytest.mark.parametrize("do", ["share", "mask", "sign", "unmask"])
def test_garbage_is_refused_and_ends_the_round_for_the_site(play, do, content):
    answers = lie(play, do, lambda _: content)
    mean = play.round(play.server())
    assert refusal(answers, do)
    if do in ("share", "mask"):
        assert mean.clients == ["hr/b", "hr/c", "hr/d"]
    header, _ = request(play, do)
    assert "refuses: expected the step refused" in header["failed"]


def test_no_key_and_no_signature_leaves_before_the_disk_knows(play, monkeypatch):
    """A site whose disk is full takes no part, instead of forgetting in which rounds it did."""

    def full(self):
        raise OSError("No space left on device")

    monkeypatch.setattr("fl_lightning.network.site.mask_record.MaskRecord._write", full)
    answers = lie(play, "share", lambda content: content)
    assert nothing(play)
    assert "No space left" in refusal(answers, "fit")
