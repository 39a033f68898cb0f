import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import SHORTCUTS, check_keys, expand_shortcuts, known_keys, parse_config, to_yaml
from fl_lightning.errors import InputError

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
]


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def refused(*arguments):
    with pytest.raises(InputError) as caught:
        parse_config(list(arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_arguments_give_the_defaults():
    assert parse_config([]) == RunConfig()


def test_the_table_below_has_every_shortcut():
    assert {arguments[0] for arguments, _ in TABLE} == set(SHORTCUTS)


@pytest.mark.parametrize(("arguments", "value"), TABLE, ids=[a[0] for a, _ in TABLE])
def test_a_shortcut_sets_its_key_and_no_other(arguments, value):
    config = parse_config(arguments)
    key = SHORTCUTS[arguments[0]]
    assert value_at(config, key) == value
    changed = {k for k, block in known_keys().items() if block is None and value_at(config, k) != default_at(k)}
    assert changed <= {key}


def default_at(key):
    return value_at(RunConfig(), key)


@pytest.mark.parametrize("arguments", [a for a, _ in TABLE if len(a) == 2], ids=[a[0] for a, _ in TABLE if len(a) == 2])
def test_a_shortcut_takes_an_equals_sign(arguments):
    assert expand_shortcuts(["=".join(arguments)]) == expand_shortcuts(arguments)


@pytest.mark.parametrize("flag", [a[0] for a, _ in TABLE if len(a) > 1])
def test_a_shortcut_without_its_value_is_refused(flag):
    assert refused(flag) == f"{flag}: no value, wanted one ({SHORTCUTS[flag]})"
    assert refused(flag, "--load-in-4bit") == f"{flag}: no value, wanted one ({SHORTCUTS[flag]})"


@pytest.mark.parametrize(
    "arguments", [["--target-modules", "a,b"], ["--target-modules=a,b"], ["--target-modules", "a", "b"]]
)
def test_target_modules_take_commas_or_blanks(arguments):
    assert parse_config([*arguments, "--rounds", "2"]).lora.target_modules == ["a", "b"]


def test_department_clustering_can_be_switched_on_again(config_file):
    path = config_file("federation:\n  dept_clusters:\n    enabled: false\n")
    assert parse_config(["--config", path]).federation.dept_clusters.enabled is False
    assert parse_config(["--config", path, "--dept-clustering"]).federation.dept_clusters.enabled is True


def outcome(*arguments):
    try:
        return parse_config(list(arguments))
    except InputError as error:
        return str(error)


def test_no_dept_clustering_equals_true_does_not_switch_it_on():
    result = outcome("--no-dept-clustering=true")
    assert "--no-dept-clustering" in result if isinstance(result, str) else not result.federation.dept_clusters.enabled


def test_a_negative_number_is_a_value_not_a_flag():
    assert refused("--seed", "-1") == "seed: got -1, wanted an integer of at least 0"


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
    assert refused("--xyzzy") == "unknown argument --xyzzy, wanted one that --help lists"


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
    assert refused(f"--{key}={value}").startswith((f"{key}: got ", f"--{key}: '{key}'"))
    parts = key.split(".")
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts[:-1]))
    path = config_file(f"{text}{'  ' * (len(parts) - 1)}{parts[-1]}: {value}\n")
    where = f"{path}:{len(parts)}: "
    assert refused("--config", path).startswith((f"{where}{key}: got ", f"{where}'{key}'"))


@pytest.mark.parametrize("key", ["seed", "output", "lora.r", "lora.target_modules", "federation.flora.momentum"])
def test_null_for_a_key_that_wants_a_value_names_the_key(config_file, key):
    path = config_file(yaml.safe_dump({key: None} if "." not in key else nest(key, None)))
    assert key in refused("--config", path)


def nest(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_a_value_out_of_range_names_the_key(config_file):
    path = config_file("federation:\n  flora:\n    momentum: 2\n")
    assert "federation.flora.momentum: got 2" in refused("--config", path)


@pytest.mark.parametrize(
    ("text", "line"), [("seed: 1\nlora: {r: 2\n", 3), ("seed: 1\n\tlora: 2\n", 2), ("a: 1\n---\nb: 2\n", 2)]
)
def test_a_yaml_error_names_file_and_line(config_file, text, line):
    path = config_file(text)
    assert refused("--config", path).startswith(f"{path}:{line}: not valid YAML")


def test_a_duplicated_key_is_refused_with_its_line(config_file):
    path = config_file("lora:\n  r: 2\n  lora_alpha: 4\n  r: 8\n")
    assert refused("--config", path) == f"{path}:4: key 'lora.r' stands there twice; remove one"


def test_a_plain_value_where_keys_are_wanted_is_refused(config_file):
    path = config_file("seed: 1\nlora: 8\n")
    assert refused("--config", path) == f"{path}:2: 'lora' wants keys of its own, got '8'"


def test_a_list_instead_of_keys_is_refused(config_file):
    path = config_file("- seed\n")
    assert refused("--config", path).startswith(f"{path}:1: got a list, wanted a mapping")


def test_a_missing_file_is_named():
    assert refused("--config", "gone.yaml").startswith("--config gone.yaml: cannot be read (No such file")


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


def test_every_shortcut_stands_for_a_known_key():
    assert set(SHORTCUTS.values()) <= set(known_keys())


def test_known_keys_are_those_of_the_config():
    def keys(values, prefix=""):
        for name, value in values.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{name}.")

    assert set(known_keys()) == set(keys(RunConfig().to_dict()))


def test_default_yaml_has_only_known_keys():
    assert check_keys(Path(__file__).parents[2] / "configs" / "default.yaml") is None


def test_parsing_imports_nothing_heavy():
    code = (
        "import sys; from fl_lightning.config.parsing import parse_config; parse_config(['--rounds', '2']);"
        "print([m for m in ('torch', 'lightning', 'transformers', 'peft', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=5), st.sampled_from(["a", "auto"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["class_path", "init_args", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)
QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(st.text(alphabet=st.sampled_from("seed: lora\n-[]{}&*!|>'\"#%@`,?1.~\t\0é"), max_size=30))
@example("? [a]\n: 1")
def test_random_text_as_config_is_parsed_or_refused(tmp_path, text):
    (tmp_path / "random.yaml").write_text(text)
    try:
        config = parse_config(["--config", str(tmp_path / "random.yaml")])
    except (InputError, SystemExit):
        return
    assert isinstance(config, RunConfig)


@QUICK
@given(st.sampled_from(sorted(k for k, block in known_keys().items() if block is None)), VALUES)
def test_random_values_of_known_keys_are_parsed_or_refused(tmp_path, key, value):
    (tmp_path / "random.yaml").write_text(yaml.safe_dump(nest(key, value)))
    try:
        config = parse_config(["--config", str(tmp_path / "random.yaml")])
    except (InputError, SystemExit):
        return
    assert isinstance(config, RunConfig)


ODD = SCALARS | st.binary(max_size=4) | st.dates() | st.text(alphabet="\0\n\ud7ff\U0001f600:#-é{", max_size=4)
NESTED = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3), max_leaves=6
)
NAMES = sorted({part for key in known_keys() for part in key.split(".")} | {"config", "print_config", "help", "<<"})
PLAIN = sorted(k for k, block in known_keys().items() if block is None)
BLOCKS = sorted(k for k, block in known_keys().items() if block is not None)


def with_keys(values):
    """{dotted key: value} as nested mappings; a key below a plain value is dropped."""
    root = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = root
        for part in parents:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return root


def parsed_or_refused(path):
    """The config of a file, or None where it is refused in one line; anything else is an error."""
    result = outcome("--config", str(path))
    if isinstance(result, RunConfig):
        return result
    assert result.removeprefix("--config ").startswith(str(path)) or "wanted" in result
    assert "\n" not in result
    return None


@pytest.mark.parametrize("text", ['"ab\\ncd": 1', 'lora: {"ab\\ncd": 1}', '"\\n": 1'])
def test_a_key_with_a_line_end_is_refused_in_one_line(config_file, text):
    refused("--config", config_file(text))


@QUICK
@given(
    st.dictionaries(st.sampled_from(PLAIN), NESTED, max_size=3),
    st.dictionaries(st.sampled_from(BLOCKS), NESTED, max_size=1),
)
def test_any_values_of_any_known_keys_are_parsed_or_refused(tmp_path, plain, blocks):
    path = tmp_path / "random.yaml"
    path.write_text(yaml.safe_dump(with_keys({**plain, **blocks}), allow_unicode=True), encoding="utf-8")
    config = parsed_or_refused(path)
    if config is not None and not blocks:
        assert parse_config(["--config", str(path)]) == config


@QUICK
@given(
    st.dictionaries(st.sampled_from(NAMES) | ODD, NESTED, min_size=1, max_size=3), st.none() | st.sampled_from(BLOCKS)
)
@example({"print_config": None}, None)
@example({"help": True}, None)
@example({"config": "random.yaml"}, None)
@example({"<<": {"seed": 3}}, None)
def test_any_keys_anywhere_are_parsed_or_refused(tmp_path, values, block):
    path = tmp_path / "random.yaml"
    path.write_text(yaml.safe_dump(values if block is None else nest(block, values)), encoding="utf-8")
    config = parsed_or_refused(path)
    known = known_keys()
    prefix = "" if block is None else f"{block}."
    if any(not isinstance(key, str) or prefix + key not in known for key in values):
        assert config is None


@QUICK
@given(
    st.binary(max_size=40)
    | st.text(max_size=40).map(str.encode)
    | st.text(max_size=12).map(lambda t: t.encode("utf-16"))
)
@example(b"seed: 1\x85lora: 2")
@example("\ufeffseed: 1".encode())
@example(b"seed: \xed\xa0\x80")
@example(b"? {? {? {}}}")
@example(b"seed: &a *a")
@example(b"%YAML 9.9\n---\nseed: 1")
@example(b"[" * 5000)
@example(b"- " * 5000)
@example(b"seed: " + b"9" * 5000)
@example(b"lora: {r: " + b"{a: " * 2000)
def test_any_bytes_as_a_config_are_parsed_or_refused(tmp_path, content):
    path = tmp_path / "random.yaml"
    path.write_bytes(content)
    parsed_or_refused(path)
