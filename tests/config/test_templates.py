import pytest
import yaml

from fl_lightning.config.parsing import parse_config
from fl_lightning.config.templates import FOLDER, methods, template
from fl_lightning.errors import InputError


def test_package_carries_the_configs_of_the_repository():
    assert FOLDER.is_symlink()
    assert FOLDER.resolve().name == "configs"
    assert template() == (FOLDER.resolve() / "default.yaml").read_text(encoding="utf-8")
    assert len(methods()) == len(list((FOLDER.resolve() / "methods").iterdir()))


@pytest.mark.parametrize("method", methods())
def test_method_has_every_key_its_comment_and_the_methods_values(method, tmp_path):
    path, made = tmp_path / "made.yaml", template(method)
    path.write_text(made, encoding="utf-8")
    assert parse_config(["--config", str(path)]) == parse_config(["--config", str(FOLDER / f"methods/{method}.yaml")])
    assert keys(yaml.safe_load(made)) >= keys(yaml.safe_load(template()))
    for comment in (line.split("  # ")[1] for line in template().splitlines() if "  # " in line):
        assert f" # {comment}" in made
    assert max(len(line) for line in made.splitlines() if not line.startswith("# ")) <= 120


def keys(value, prefix=""):
    if not isinstance(value, dict):
        return set()
    return {prefix + k for k in value} | {deep for k, v in value.items() for deep in keys(v, f"{prefix}{k}.")}


def test_comment_stays_in_its_column():
    def line(text):
        return next(row for row in text.splitlines() if row.startswith("  share:"))

    assert line(template("fedsa_lora")).index("#") == line(template()).index("#")


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'fedsa_lora'"):
        template("fedsa-lora")
    with pytest.raises(InputError, match="expected one of apfl, central, contribution"):
        template("../default")
