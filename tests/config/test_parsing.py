import subprocess
import sys

import pytest
import yaml
from config_cases import nest, refused

from fl_lightning.config import GuardConfig, RunConfig
from fl_lightning.config.parsing import parse_config, to_yaml
from fl_lightning.config.shortcuts import SHORTCUTS
from fl_lightning.errors import InputError


def test_no_arguments_give_the_defaults():
    assert parse_config([]) == RunConfig()


def test_department_clustering_can_be_switched_on_again(config_file):
    path = config_file("federation:\n  dept_clusters:\n    enabled: false\n")
    assert parse_config(["--config", path]).federation.dept_clusters.enabled is False
    assert parse_config(["--config", path, "--dept-clustering"]).federation.dept_clusters.enabled is True


def test_dotted_overrides_set_nested_keys():
    config = parse_config(["--federation.flora.momentum=0.5", "--lora.r", "2"])
    assert config.federation.flora.momentum == 0.5
    assert config.lora.r == 2


def test_a_file_sets_keys_and_leaves_the_rest(config_file):
    config = parse_config(["--config", config_file("federation:\n  flora:\n    momentum: 0.5\n")])
    assert config.federation.flora.momentum == 0.5
    assert config.federation.rounds == 10


def test_the_later_argument_wins(config_file):
    path = config_file("federation:\n  rounds: 4\n")
    assert parse_config(["--config", path, "--rounds", "3"]).federation.rounds == 3
    assert parse_config(["--rounds", "3", "--config", path]).federation.rounds == 4
    assert parse_config(["--rounds", "3", "--federation.rounds=6"]).federation.rounds == 6
    assert parse_config(["--federation.rounds=6", "--rounds", "3"]).federation.rounds == 3


def test_a_later_file_wins_key_by_key(config_file):
    first = config_file("seed: 1\nlora:\n  r: 2\n", "first.yaml")
    second = config_file("lora:\n  r: 4\n", "second.yaml")
    config = parse_config(["--config", first, f"--config={second}"])
    assert (config.seed, config.lora.r) == (1, 4)


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3"])
def test_a_rate_in_any_notation_is_a_number(config_file, text):
    path = config_file(f"training:\n  learning_rate: {text}\n")
    assert parse_config(["--config", path]).training.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["123", "null", "true", "1e3", "2024-01-01"])
def test_a_folder_that_looks_like_another_type_stays_text(text):
    assert parse_config(["--output", text]).output == text


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--ronds", "rounds"),
        ("--learning-rte", "learning-rate"),
        ("--federation.ronds=3", "federation.rounds"),
        ("--training.batch_sze", "training.batch_size"),
    ],
)
def test_a_misspelt_flag_suggests(flag, suggestion):
    assert refused(flag, "3") == f"unknown argument {flag}; did you mean '{suggestion}'?"


def test_a_flag_like_no_other_is_named():
    assert refused("--xyzzy") == "unknown argument --xyzzy; --help lists the arguments"


def test_a_stray_word_is_refused():
    assert "extra_word" in refused("extra_word")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "x"),
        ("lora.r", "1.5"),
        ("lora.r", "true"),
        ("lora.target_modules", "3"),
        ("training.clients_at_once", "many"),
        ("model.load_in_4bit", "1"),
        ("federation.share", "c"),
        ("federation.flora.momentum", "fast"),
        ("federation.dept_clusters.mix", "none"),
        ("fabric.precision", "fp64"),
    ],
)
def test_a_wrong_type_names_the_key_in_arguments_and_the_line_in_a_file(config_file, key, value):
    message = refused(f"--{key}={value}")
    assert message.startswith(f"{key}: expected ")
    assert message.partition("; did you mean ")[0].endswith(f", got {'True' if value == 'true' else value}")
    parts = key.split(".")
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts[:-1]))
    path = config_file(f"{text}{'  ' * (len(parts) - 1)}{parts[-1]}: {value}\n")
    assert refused("--config", path) == f"{path}:{len(parts)}: {message}"


@pytest.mark.parametrize("key", ["seed", "output", "lora.r", "lora.target_modules", "federation.flora.momentum"])
def test_null_for_a_key_that_wants_a_value_names_the_key(config_file, key):
    path = config_file(yaml.safe_dump({key: None} if "." not in key else nest(key, None)))
    assert key in refused("--config", path)


def test_a_value_out_of_range_names_the_key(config_file):
    path = config_file("federation:\n  flora:\n    momentum: 2\n")
    assert ":3: federation.flora.momentum: expected a number in (0, 1], got 2" in refused("--config", path)


def test_print_config_parses_back_to_the_same_config(config_file, capsys):
    arguments = ["--rounds", "3", "--learning-rate", "1e-3", "--target-modules", "a", "b", "--no-dept-clustering"]
    with pytest.raises(SystemExit) as caught:
        parse_config([*arguments, "--print_config"])
    assert caught.value.code in (0, None)
    path = config_file(capsys.readouterr().out)
    assert parse_config(["--config", path]) == parse_config(arguments)


def test_a_saved_config_parses_back_to_the_same_config(config_file):
    config = parse_config(["--lora-alpha", "7.5", "--seed", "3", "--output", "a: b # c", "--local-epochs", "2"])
    assert parse_config(["--config", config_file(to_yaml(config))]) == config


@pytest.mark.parametrize("text", ["1e3", "12e4567"])
def test_a_saved_revision_that_looks_like_a_number_parses_back(config_file, text):
    config = parse_config(["--model.revision", text])
    assert parse_config(["--config", config_file(to_yaml(config))]) == config


def test_help_lists_keys_and_shortcuts(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"])
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out
    for flag in SHORTCUTS:
        assert flag in shown
    assert "--federation.dept_clusters.representation" in shown


def test_parsing_imports_nothing_heavy():
    code = (
        "import sys; from fl_lightning.config.parsing import parse_config; parse_config(['--rounds', '2']);"
        "print([m for m in ('torch', 'lightning', 'transformers', 'peft', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("federation.guard.name", "multikrum", "multi_krum"),
        ("federation.weighting", "token", "tokens"),
        ("federation.server.step", "fedadm", "fedadam"),
        ("federation.share", "freeze", "freeze_a"),
        ("federation.combiner", "stak", "stack"),
    ],
)
def test_a_misspelled_choice_is_refused_with_the_nearest(key, value, nearest):
    with pytest.raises(InputError, match=f"{key}: expected one of .*, got '?{value}'?; did you mean '{nearest}'"):
        parse_config([f"--{key}={value}"])


def test_a_misspelled_choice_from_python_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="federation.guard.name: expected one of .*, got 'krumm'; did you mean 'krum'"):
        GuardConfig(name="krumm")
