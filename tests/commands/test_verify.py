import json
import shutil

import pytest
from signed_runs import sign_as_sites

from fl_lightning.provenance.certificate import write_certificate

pytest.importorskip("cryptography", reason="cryptography is not installed; the sign extra has it")


def test_a_signed_run_holds_and_what_is_not_covered_is_said(command, copied, operator_key):
    code, text, _ = command("verify", "--run", copied, "--public-key", operator_key.with_name("key.pub"))
    assert code == 0
    assert "5 lines of 3 rounds hold" in text
    assert "key.pub" in text
    assert "integrity only" not in text
    for name in ("metrics.csv", "client_runs/", "history.jsonl", "report/"):
        assert name in text.partition("not covered:")[2]


def test_without_a_public_key_it_proves_integrity_only(command, copied):
    code, text, _ = command("verify", "--run", copied)
    assert code == 0
    assert "integrity only" in text


def test_an_unsigned_run_says_so(command, copied, operator_key):
    lines = (copied / "ledger.jsonl").read_text().splitlines()
    end = {key: value for key, value in json.loads(lines[-1]).items() if key not in ("signature", "public_key")}
    lines[-1] = json.dumps(end, sort_keys=True, separators=(",", ":"))
    (copied / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    code, text, _ = command("verify", "--run", copied)
    assert code == 0
    assert "not signed" in text
    code, _, error = command("verify", "--run", copied, "--public-key", operator_key.with_name("key.pub"))
    assert code == 1
    assert "ledger.jsonl:5: unsigned" in error


def test_what_is_not_right_is_one_line_and_exit_code_1(command, copied):
    (copied / "federated_eval.json").write_text("{}")
    code, _, error = command("verify", "--run", copied)
    assert code == 1
    assert error.startswith("failed: ")
    assert "federated_eval.json: changed" in error
    assert error.count("\n") == 1


def test_a_config_that_is_gone_is_found_and_no_bad_input(command, copied):
    (copied / "config.yaml").unlink()
    code, _, error = command("verify", "--run", copied)
    assert code == 1
    assert "config.yaml: missing" in error


@pytest.mark.parametrize("cut", [0, 20])
def test_an_unfinished_run_says_so(command, copied, cut):
    lines = (copied / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "ledger.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:cut])
    code, _, error = command("verify", "--run", copied)
    assert code == 1
    assert "ledger.jsonl:4" in error
    assert "fit --resume continues it" in error


def test_another_key_is_refused(command, copied, tmp_path):
    from fl_lightning.provenance.signing import new_key

    code, _, error = command("verify", "--run", copied, "--public-key", new_key(tmp_path / "other"))
    assert code == 1
    assert "ledger.jsonl:5: signed by another key" in error


def test_rounds_are_computed_again(command, copied):
    code, text, _ = command("verify", "--run", copied, "--replay", "3")
    assert code == 0
    assert "computed again: rounds 3: updates, records, weights and states are those of the ledger" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [([], "expected --run"),
     (["--run", "nowhere"], "no config.yaml in it"),
     (["--run", "RUN", "--public-key", "nowhere.pub"], "nowhere.pub: cannot be read"),
     (["--run", "RUN", "--public-key", "RUN/config.yaml"], "expected an Ed25519 key"),
     (["--replay", "2"], "expected --run"),
     (["--run", "RUN", "--replay", "0"], "--replay: expected an integer of at least 1, got '0'"),
     (["--run", "RUN", "--replay", "4"], "--replay: expected rounds from 1 to 3, got 4"),
     (["--run", "RUN", "--replay", "1", "--certificate", "x"], "expected --replay with --run and without"),
     (["--run", "RUN", "--data", "x"], "expected --client or --replay with --data"),
     (["--run", "RUN", "--public-key", ""], "--public-key: expected a value, got none"),
     (["--run", "RUN", "--site-keys", "nowhere.txt"], "nowhere.txt"),
     (["--run", "RUN", "--site-keys", "RUN/config.yaml"], "config.yaml:1: expected a client id and a key"),
     (["--certificate", "RUN", "--site-keys", "RUN/config.yaml"], "expected --site-keys with --run and without"),
     (["--certificate", "nowhere.json"], "nowhere.json: expected a certificate"),
     (["--run", "RUN", "--publickey", "x"], "did you mean '--public-key'")],
)  # fmt: skip
def test_bad_input_is_exit_code_2(command, copied, argv, message):
    code, _, error = command("verify", *(word.replace("RUN", str(copied)) for word in argv))
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


@pytest.fixture
def signed_by_sites(copied, tmp_path):
    """The run as if each client had been a site, and the file of the sites' keys."""
    return copied, sign_as_sites(copied, tmp_path / "sites.txt")


def test_signatures_of_sites_are_checked_against_the_ledgers_keys_or_known_ones(command, signed_by_sites):
    run, known = signed_by_sites
    code, text, _ = command("verify", "--run", run)
    assert code == 0
    assert "every update is signed by its site" in text
    assert "the ledger itself names" in text
    code, text, _ = command("verify", "--run", run, "--site-keys", known)
    assert code == 0
    assert f"with the keys of {len(known.read_text().splitlines())} sites in {known}" in text
    known.write_text("".join(known.read_text().splitlines(keepends=True)[1:]))
    code, _, error = command("verify", "--run", run, "--site-keys", known)
    assert code == 1
    assert "ledger.jsonl:1: " in error
    assert "expected a site whose key is known" in error


def test_a_run_in_one_process_is_none_of_known_sites(command, copied, signed_by_sites, signed_run):
    code, text, _ = command("verify", "--run", signed_run)
    assert code == 0
    assert "signed by its site" not in text
    code, _, error = command("verify", "--run", signed_run, "--site-keys", signed_by_sites[1])
    assert code == 1
    assert "ledger.jsonl:1: unsigned: expected the public keys of sites" in error


def test_a_run_without_a_ledger_is_bad_input(command, copied):
    (copied / "ledger.jsonl").unlink()
    code, _, error = command("verify", "--run", copied)
    assert code == 2
    assert "ledger.enabled" in error


@pytest.mark.parametrize("signed", [True, False])
def test_a_certificate_is_checked_with_its_run_and_apart_from_it(
    command, copied, signed_run, operator_key, tmp_path, signed
):
    key = operator_key if signed else None
    write_certificate(copied, signed_run, taken_out={"clients": ["hr/client_7"]}, first_round=2, sign_key=key)
    for argv in (["--run", copied], ["--certificate", copied / "certificate" / "certificate.json"]):
        code, text, _ = command("verify", *argv)
        assert code == 0
        assert "from round 2 on, the run is without hr/client_7" in text
        assert ("the certificate is not signed" in text) == (not signed)
    apart = shutil.copytree(copied / "certificate", tmp_path / "handed_over")
    assert command("verify", "--certificate", apart, "--run", copied)[0] == 0
    (apart / "before.jsonl").write_bytes(b"")
    code, _, error = command("verify", "--certificate", apart, "--run", copied)
    assert code == 1
    assert "before.jsonl" in error
    argv = ["--run", copied, "--public-key", operator_key.with_name("key.pub")]
    assert command("verify", *argv)[0] == (0 if signed else 1)
