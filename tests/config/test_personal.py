import pytest

from fl_lightning.config import PersonalConfig
from fl_lightning.config.parsing import parse_config, to_yaml
from fl_lightning.errors import InputError


@pytest.mark.parametrize("levels", [[], ["department"], ["department", "own"], ["own", "own"], ["own", "team"]])
def test_levels_are_own_and_others_once(levels):
    with pytest.raises(InputError, match="personal.levels: expected own, and after it some of department, cluster"):
        PersonalConfig(levels=levels)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"ditto_lambda": 0.1}, "personal.ditto_lambda: expected the default, or personal.own: during.*got 0.1"),
        ({"apfl_alpha": 0.5, "own": "off"}, "personal.apfl_alpha: expected the default, or personal.own: during"),
        ({"apfl_rate": 0.1, "own": "during"}, "personal.apfl_rate: expected 0, or a personal.apfl_alpha below 1"),
        ({"fedalt_weight": 0.5}, "personal.fedalt_weight: expected the default, or personal.own: during"),
        ({"own_adapters": 2, "own": "during"}, "personal.own_adapters: expected 1, or personal.own: after .*got 2"),
        ({"apfl_alpha": 0.5, "ditto_lambda": 0.1, "own": "during"}, "personal: expected one method for own adapters"),
        ({"fedalt_gate": True}, "personal.fedalt_gate: expected the default, or personal.own: during.*got True"),
        ({"fedalt_gate": True, "fedalt_weight": 0.5, "own": "during"}, "personal: expected one method for own"),
        (
            {"fedalt_gate": True, "mates": "all", "own": "during"},
            "personal.mates: expected off, or .*fedalt_gate",
        ),
        (
            {"fedalt_gate": True, "adapter": "svd", "own": "during"},
            "personal.adapter: expected average, or .*got 'svd'",
        ),
        ({"own": "off", "levels": ["own"]}, "personal.levels: expected a level besides own"),
    ],
)
def test_methods_for_own_adapters_need_own_adapters(choices, message):
    with pytest.raises(InputError, match=message):
        PersonalConfig(**choices)


def test_off_in_a_file_is_the_word_and_not_yamls_false(tmp_path):
    (tmp_path / "run.yaml").write_text("personal:\n  own: off\n")
    config = parse_config(["--config", str(tmp_path / "run.yaml")])
    assert config.personal.own == "off"
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert parse_config(["--config", str(tmp_path / "again.yaml")]) == config
    (tmp_path / "run.yaml").write_text("personal:\n  own: never\n")
    with pytest.raises(InputError, match=r"run.yaml:2: personal.own: expected one of off, during, after, got never"):
        parse_config(["--config", str(tmp_path / "run.yaml")])
