import json
import shutil

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed; the sign extra has it")


@pytest.fixture
def salt(command, copied, tmp_path):
    path = tmp_path / "salt"
    code, text, _ = command("verify", "--run", copied, "--client", "hr/client_1", "--write-salt", path)
    assert code == 0
    assert "to nobody else" in text
    assert path.read_text().strip() not in text
    return path


def records_of(run, client_id):
    import yaml

    from fl_lightning.data.layout import find_client

    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    return find_client(root, client_id).train


def test_a_client_finds_its_records_and_the_salt_is_a_secret(command, copied, salt):
    assert salt.stat().st_mode & 0o777 == 0o600
    code, text, _ = command("verify", "--run", copied, "--client", "hr/client_1", "--salt", salt)
    assert code == 0
    assert "hr/client_1: these records are in the ledger, in 3 of 3 rounds: 1, 2, 3" in text
    assert "client_0" not in text


def test_ledger_and_config_are_enough_for_a_client_with_its_own_file(command, copied, salt, tmp_path):
    train = records_of(copied, "hr/client_1")
    apart = tmp_path / "apart"
    apart.mkdir()
    for name in ("ledger.jsonl", "config.yaml"):
        shutil.copy(copied / name, apart)
    for records in (train, train.parent):
        argv = ["--run", apart, "--client", "hr/client_1", "--salt", salt, "--records", records]
        assert command("verify", *argv)[0] == 0
    (tmp_path / "mine.jsonl").write_text("".join(train.read_text().splitlines(keepends=True)[:-1]))
    argv = ["--run", apart, "--client", "hr/client_1", "--salt", salt, "--records", tmp_path / "mine.jsonl"]
    code, _, error = command("verify", *argv)
    assert code == 1
    assert "ledger.jsonl:2: hr/client_1 took part in round 1, but not with these records" in error


def test_a_salt_says_nothing_about_others(command, copied, salt):
    records = records_of(copied, "hr/client_0")
    argv = ["--run", copied, "--client", "hr/client_0", "--salt", salt, "--records", records]
    code, _, error = command("verify", *argv)
    assert code == 1
    assert "or the salt is not the one of this client and run" in error


def test_a_client_that_took_no_part_is_in_no_round(command, copied, salt):
    code, _, error = command("verify", "--run", copied, "--client", "hr/client_9", "--salt", salt)
    assert code == 1
    assert "hr/client_9 is in no round" in error


def test_a_ledger_that_does_not_hold_tells_nothing(command, copied, salt):
    lines = (copied / "ledger.jsonl").read_text().splitlines()
    values = json.loads(lines[1])
    values["clients"]["hr/client_0"]["weight"] = 0.75
    lines[1] = json.dumps(values, sort_keys=True, separators=(",", ":"))
    (copied / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    code, _, error = command("verify", "--run", copied, "--client", "hr/client_1", "--salt", salt)
    assert code == 1
    assert "ledger.jsonl:2" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--client", "hr/client_1"], "either --salt or --write-salt"),
     (["--salt", "SALT"], "expected --client with --salt"),
     (["--client", "hr/client_1", "--salt", "nowhere"], "nowhere: cannot be read"),
     (["--client", "hr/client_1", "--write-salt", "SALT"], "expected a new file"),
     (["--client", "hr/klient_1", "--write-salt", "NEW"], "did you mean 'hr/client_1'"),
     (["--client", "hr/client_1", "--write-salt", "NEW", "--data", "x"], "expected --write-salt without --data"),
     (["--client", "hr/client_1", "--salt", "SALT", "--records", "nowhere"], "nowhere: expected a client's folder"),
     (["--client", "hr/client_1", "--salt", "SALT", "--data", "nowhere"], "nowhere")],
)  # fmt: skip
def test_bad_input_is_exit_code_2(command, copied, salt, tmp_path, argv, message):
    places = {"SALT": str(salt), "NEW": str(tmp_path / "new")}
    code, _, error = command("verify", "--run", copied, *(places.get(word, word) for word in argv))
    assert (code, error.count("\n")) == (2, 1), error
    assert message in error
    assert not (tmp_path / "new").exists()
