"""Random YAML is read, or refused in one line. FUZZ_EXAMPLES=500 looks longer than a run of all tests does."""

import os

import yaml
from config_cases import nest, outcome
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.config.yaml_checks import known_keys

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=5), st.sampled_from(["a", "auto"])
)
QUICK = settings(
    deadline=None,
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "12")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ODD = SCALARS | st.binary(max_size=4) | st.dates() | st.text(alphabet="\0\n\ud7ff\U0001f600:#-é{", max_size=4)
NESTED = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3), max_leaves=6
)
NAMES = sorted({part for key in known_keys() for part in key.split(".")} | {"config", "print_config", "help", "<<"})
PLAIN = sorted(k for k, block in known_keys().items() if block is None)
BLOCKS = sorted(k for k, block in known_keys().items() if block is not None)
YAML_LIKE = st.text(alphabet=st.sampled_from("seed: lora\n-[]{}&*!|>'\"#%@`,?1.~\t\0é"), max_size=30)


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
    | YAML_LIKE.map(str.encode)
    | st.text(max_size=12).map(lambda t: t.encode("utf-16"))
)
@example(b"? [a]\n: 1")
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
