import pytest
from config_cases import outcome, refused

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.config.shortcuts import SHORTCUTS, expand_shortcuts
from fl_lightning.config.yaml_checks import known_keys

TABLE = [
    (["--rounds", "5"], 5),
    (["--clients-per-dept", "2"], 2),
    (["--local-epochs", "3"], 3),
    (["--learning-rate", "1e-3"], 1e-3),
    (["--max-records", "9"], 9),
    (["--batch-size", "7"], 7),
    (["--lora-r", "4"], 4),
    (["--lora-alpha", "32"], 32),
    (["--lora-dropout", "0.5"], 0.5),
    (["--target-modules", "q_proj", "k_proj"], ["q_proj", "k_proj"]),
    (["--num-clusters", "3"], 3),
    (["--global-mix", "0.75"], 0.75),
    (["--dept-clustering"], True),
    (["--no-dept-clustering"], False),
    (["--load-in-4bit"], True),
    (["--device-map", "cpu"], "cpu"),
    (["--dtype", "bf16"], "bf16"),
    (["--data", "some/folder"], "some/folder"),
    (["--output", "elsewhere"], "elsewhere"),
    (["--seed", "77"], 77),
    (["--sign-key", "operator"], "operator"),
]


DEFAULTS = RunConfig()


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_the_table_below_has_every_shortcut():
    assert {arguments[0] for arguments, _ in TABLE} == set(SHORTCUTS)


@pytest.mark.parametrize(("arguments", "value"), TABLE, ids=[a[0] for a, _ in TABLE])
def test_a_shortcut_sets_its_key_and_no_other(arguments, value):
    config = parse_config(arguments)
    key = SHORTCUTS[arguments[0]]
    assert value_at(config, key) == value
    changed = {k for k, block in known_keys().items() if block is None and value_at(config, k) != value_at(DEFAULTS, k)}
    assert changed <= {key}


@pytest.mark.parametrize("arguments", [a for a, _ in TABLE if len(a) == 2], ids=[a[0] for a, _ in TABLE if len(a) == 2])
def test_a_shortcut_takes_an_equals_sign(arguments):
    assert expand_shortcuts(["=".join(arguments)]) == expand_shortcuts(arguments)


@pytest.mark.parametrize("flag", [a[0] for a, _ in TABLE if len(a) > 1])
def test_a_shortcut_without_its_value_is_refused(flag):
    assert refused(flag) == f"{flag}: expected a value for {SHORTCUTS[flag]}, got none"
    assert refused(flag, "--load-in-4bit") == f"{flag}: expected a value for {SHORTCUTS[flag]}, got none"


@pytest.mark.parametrize(
    "arguments", [["--target-modules", "a,b"], ["--target-modules=a,b"], ["--target-modules", "a", "b"]]
)
def test_target_modules_take_commas_or_blanks(arguments):
    assert parse_config([*arguments, "--rounds", "2"]).lora.target_modules == ["a", "b"]


def test_no_dept_clustering_equals_true_does_not_switch_it_on():
    result = outcome("--no-dept-clustering=true")
    assert "--no-dept-clustering" in result if isinstance(result, str) else not result.federation.dept_clusters.enabled


def test_a_negative_number_is_a_value_not_a_flag():
    assert refused("--seed", "-1") == "seed: expected an integer of at least 0, got -1"


def test_every_shortcut_stands_for_a_known_key():
    assert set(SHORTCUTS.values()) <= set(known_keys())
