import json
import shutil

import pytest

from fl_lightning.provenance.certificate import check_certificate, write_certificate
from fl_lightning.provenance.chain import ChainError, LedgerFile, read_chain


def make_run(folder, clients, states):
    """A run folder with nothing but a chain: one round for each of the states of hr."""
    folder.mkdir()
    ledger = LedgerFile(folder / "ledger.jsonl")
    values = {"run": folder.name, "config": "", "base": "", "versions": {}}
    ledger.begin({"kind": "start", **values, "states": {"departments": {"hr": "0"}, "groups": {}}})
    for number, state in enumerate(states, start=1):
        values = {"clients": dict.fromkeys(clients, {}), "departments": {}, "states": {"departments": {"hr": state}}}
        ledger.append({"kind": "round", "round": number, **values})
    ledger.append({"kind": "end", "rounds": len(states), "files": {}, "folders": {}, "checkpoints": {}})
    return folder


@pytest.fixture
def before(tmp_path):
    return make_run(tmp_path / "before", ["hr/a", "hr/b"], ["1", "2", "3"])


@pytest.fixture
def after(tmp_path):
    return make_run(tmp_path / "after", ["hr/a"], ["1", "5", "6"])


def check(run, public_key=None):
    return check_certificate(run, read_chain(run), public_key)


def test_a_certificate_says_what_was_taken_out_and_from_which_round_on(before, after):
    folder = write_certificate(after, before, taken_out={"clients": ["hr/b"]}, first_round=2)
    values = check(after)
    assert values["taken_out"] == {"clients": ["hr/b"]}
    assert (values["before"]["departments"], values["after"]["departments"]) == ({"hr": "3"}, {"hr": "6"})
    page = (folder / "certificate.md").read_text()
    assert "- hr/b" in page
    assert "computed again" in page
    assert read_chain(before).head in page
    shutil.rmtree(before)  # the certificate has its chain
    assert check(after) == values


def test_a_signed_certificate_is_the_operators(before, after, operator_key):
    from fl_lightning.provenance.signing import load_public_key

    write_certificate(after, before, taken_out={"clients": ["hr/b"]}, first_round=2, sign_key=operator_key)
    key = load_public_key(operator_key.with_name("key.pub"))
    assert check(after, key)["public_key"] == key
    with pytest.raises(ChainError, match="signed by another key"):
        check(after, "0" * 64)


@pytest.mark.parametrize(
    ("taken_out", "first_round", "problem"),
    [({"clients": ["hr/a"]}, 2, "hr/a: expected it in no round, got round 1"),
     ({"departments": ["hr"]}, 2, "hr/a: expected it in no round"),
     ({"clients": ["hr/b"]}, 3, "hr has another state in both runs after round 2 already")],
)  # fmt: skip
def test_a_certificate_that_does_not_hold_is_found(before, after, taken_out, first_round, problem):
    write_certificate(after, before, taken_out=taken_out, first_round=first_round)
    with pytest.raises(ChainError, match=problem):
        check(after)


@pytest.mark.parametrize("name", ["certificate.json", "certificate.md", "before.jsonl"])
def test_a_changed_certificate_is_found(before, after, name):
    path = write_certificate(after, before, taken_out={"clients": ["hr/b"]}, first_round=2) / name
    data = path.read_bytes()
    for changed in (data.replace(b"hr", b"it", 1), data[:-1], b"", b"\xff" * 9, b"[[[", b'{"taken_out": 7}'):
        path.write_bytes(changed)
        with pytest.raises(ChainError, match=r"certificate"):
            check(after)
    path.unlink()
    with pytest.raises(ChainError, match="missing"):
        check(after)


def test_a_certificate_of_another_run_is_found(before, after, tmp_path):
    write_certificate(after, before, taken_out={"clients": ["hr/b"]}, first_round=2)
    other = make_run(tmp_path / "other", ["hr/a"], ["1", "7"])
    shutil.copytree(after / "certificate", other / "certificate")
    with pytest.raises(ChainError, match="after: changed, or the chain is another run's"):
        check(other)


def test_an_unsigned_certificate_is_not_taken_for_a_signed_one(before, after):
    path = write_certificate(after, before, taken_out={"clients": ["hr/b"]}, first_round=2) / "certificate.json"
    assert "signature" not in json.loads(path.read_text())
    with pytest.raises(ChainError, match="unsigned"):
        check(after, "0" * 64)
