import sys
from pathlib import Path

import pytest
from config_cases import outcome, refused

from fl_lightning.config import RunConfig
from fl_lightning.config.checks import NonNegativeInt, PositiveInt
from fl_lightning.config.yaml_checks import check_yaml, known_keys, type_of


def test_a_misspelt_key_names_file_line_and_nearest_key(config_file):
    path = config_file("seed: 1\nfederation:\n  share: a\n  ronds: 3\n")
    assert refused("--config", path) == f"{path}:4: unknown key 'federation.ronds'; did you mean 'rounds'?"


def test_a_misspelt_block_names_the_nearest_block(config_file):
    path = config_file("\nfederaton:\n  rounds: 3\n")
    assert refused("--config", path) == f"{path}:2: unknown key 'federaton'; did you mean 'federation'?"


def test_a_key_in_the_wrong_block_names_its_home(config_file):
    path = config_file("rounds: 3\n")
    assert refused("--config", path) == f"{path}:1: unknown key 'rounds'; did you mean 'federation.rounds'?"


def test_a_key_like_no_other_gets_no_suggestion(config_file):
    path = config_file("xyzzy: 3\n")
    assert refused("--config", path) == f"{path}:1: unknown key 'xyzzy'"


@pytest.mark.parametrize(
    ("text", "line"), [("seed: 1\nlora: {r: 2\n", 3), ("seed: 1\n\tlora: 2\n", 2), ("a: 1\n---\nb: 2\n", 2)]
)
def test_a_yaml_error_names_file_and_line(config_file, text, line):
    path = config_file(text)
    assert refused("--config", path).startswith(f"{path}:{line}: not valid YAML")


def test_a_duplicated_key_is_refused_with_its_line(config_file):
    path = config_file("lora:\n  r: 2\n  lora_alpha: 4\n  r: 8\n")
    assert refused("--config", path) == f"{path}:4: expected each key once, got 'lora.r' twice"


def test_a_plain_value_where_keys_are_wanted_is_refused(config_file):
    path = config_file("seed: 1\nlora: 8\n")
    assert refused("--config", path) == f"{path}:2: lora: expected a block of keys, got '8'"


def test_a_list_instead_of_keys_is_refused(config_file):
    path = config_file("- seed\n")
    assert refused("--config", path).startswith(f"{path}:1: expected a mapping of keys such as")


def test_a_missing_file_is_named():
    assert refused("--config", "gone.yaml").startswith("--config gone.yaml: cannot be read (")


def test_a_folder_instead_of_a_file_is_named(tmp_path):
    assert refused("--config", str(tmp_path)).startswith(f"--config {tmp_path}: cannot be read (not a regular file)")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("output: Zürich\n".encode("latin-1"))
    assert "latin.yaml: not UTF-8 (byte 9)" in refused("--config", str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_file_is_the_defaults_or_refused_by_name(config_file, text):
    path = config_file(text)
    result = outcome("--config", path)
    assert path in result if isinstance(result, str) else result == RunConfig()


def test_yaml_that_asks_for_python_objects_is_refused(config_file, tmp_path):
    path = config_file(f"output: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    refused("--config", path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["seed: !!timestamp x", "seed: !!int x", "seed: !!bool x", "output: !!binary é"])
def test_a_value_that_its_tag_does_not_fit_is_refused(config_file, text):
    assert refused("--config", config_file(text))


def test_yaml_that_contains_itself_is_refused(config_file):
    refused("--config", config_file("logging: &a\n  loggers: [*a]\n"))


def test_known_keys_are_those_of_the_config():
    def keys(values, prefix=""):
        for name, value in values.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{name}.")

    assert set(known_keys()) == set(keys(RunConfig().to_dict()))


def test_default_yaml_has_only_known_keys():
    assert check_yaml(Path(__file__).parents[2] / "configs" / "default.yaml") is None


@pytest.mark.parametrize("text", ['"ab\\ncd": 1', 'lora: {"ab\\ncd": 1}', '"\\n": 1'])
def test_a_key_with_a_line_end_is_refused_in_one_line(config_file, text):
    refused("--config", config_file(text))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("null", "lora.profiles.hr: expected a block of keys, got null"),
        ("{rank: 4}", "unknown key 'lora.profiles.hr.rank'"),
        ("{class_path: this.Zen}", "unknown key 'lora.profiles.hr.class_path'"),
    ],
)
def test_a_profile_has_the_keys_of_a_profile_and_imports_nothing(config_file, profile, message):
    path = config_file(f"lora:\n  profiles:\n    it: {{r: 2}}\n    hr: {profile}\n")
    assert refused("--config", path) == f"{path}:4: {message}"
    assert "this" not in sys.modules


def test_type_of_finds_fields_of_blocks_and_of_profiles():
    assert type_of("seed") == NonNegativeInt
    assert type_of("federation.dept_clusters.enabled") is bool
    assert type_of("lora.profiles.r") == PositiveInt
