import pytest

from fl_lightning.commands.certs import run as certs
from fl_lightning.errors import InputError
from fl_lightning.network.tls import public_keys

pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'fl_lightning[flower]'")


def test_sites_named_get_keys_and_the_table_says_who_gets_what(tmp_path, capsys):
    folder = tmp_path / "c"
    assert certs(["--sites", "hr/client_0", "hr/client_1", "--out", str(folder)]) == 0
    assert list(public_keys(folder)) == ["hr/client_0", "hr/client_1"]
    said = capsys.readouterr().out
    for word in ("hand to", "the server", "hr/client_0", "hr/client_1", "ca.key", "nobody"):
        assert word in said
    assert "PRIVATE" not in said


def test_a_site_is_added_later(tmp_path, capsys):
    folder = tmp_path / "c"
    certs(["--sites", "hr/client_0", "--out", str(folder)])
    assert certs(["--add", "hr/client_3", "--out", str(folder)]) == 0
    assert list(public_keys(folder)) == ["hr/client_0", "hr/client_3"]
    assert "sites: 2" in capsys.readouterr().out


def test_a_config_means_the_clients_of_its_data(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("data: {clients_per_dept: 2}\n")
    certs(["--config", str(config), "--out", str(tmp_path / "c"), "--hosts", "fl.example", "--days", "3"])
    assert len(public_keys(tmp_path / "c")) == 8


def test_a_key_that_signs_ledgers_is_for_its_owner_only(tmp_path, capsys):
    path = tmp_path / "keys" / "operator"
    assert certs(["--sign-key", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("operator.pub").read_text().startswith("ssh-ed25519 ")
    said = capsys.readouterr().out
    assert "SHA256:" in said
    assert not [line for line in path.read_text().splitlines()[1:-1] if line in said]
    with pytest.raises(InputError, match="expected a new file, got one that exists"):
        certs(["--sign-key", str(path)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one of the arguments"),
        (["--sites"], "--sites: expected one value or more, got none"),
        (["--sites", "hr/a", "--add", "hr/b"], "not allowed with"),
        (["--sites", "hr/a", "--dayz", "3"], "unknown argument --dayz; did you mean '--days'"),
        (["--sites", "hr/a", "--days", "many"], "--days: expected an integer of at least 1, got 'many'"),
        (["--sites", "hr"], "expected department/client"),
        (["--add", "hr/a", "--days", "3"], "expected --add without"),
        (["--sign-key", "key", "--days", "3"], "expected --sign-key without"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_arguments_are_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        certs(argv)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
