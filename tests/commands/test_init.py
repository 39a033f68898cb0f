import pytest

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.config.templates import template


def test_config_is_written_and_read_back(command, tmp_path):
    path = tmp_path / "new" / "my.yaml"
    code, text, errors = command("init", "--output", path)
    assert (code, errors) == (0, "")
    assert f"fit --config {path}" in text
    assert path.read_text() == template()
    config = parse_config(["--config", str(path)])
    assert config.federation == RunConfig().federation


def test_default_name_is_config_yaml(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("init", "--method", "krum")[0] == 0
    assert parse_config(["--config", "config.yaml"]).federation.guard.name == "krum"


@pytest.mark.parametrize(
    ("argv", "words"), [(["--output", "THERE"], "is not overwritten"), (["--method", "krm"], "did you mean 'krum'?")]
)
def test_bad_input_is_one_line_and_changes_nothing(command, tmp_path, argv, words):
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    code, _, errors = command("init", *(str(there) if item == "THERE" else item for item in argv))
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert there.read_text() == "mine"


def test_help_lists_the_methods(command, capfd):
    with pytest.raises(SystemExit):
        command("init", "--help")
    assert "fedsa_lora" in capfd.readouterr().out
