"""Every YAML under configs/ is read with all checks, and run for the smallest possible round on a micro base model."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

import fl_lightning
from fl_lightning.config import LoraProfile, RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.config.yaml_checks import known_keys
from fl_lightning.runs.fit import fit

FOLDER = Path(fl_lightning.__file__).parent.parent / "configs"
FILES = sorted(p for p in FOLDER.rglob("*") if p.suffix in (".yaml", ".yml"))


def leaves(values, prefix=""):
    """{dotted key: value} of everything that is not a block."""
    blocks = known_keys()
    values_by_key = {}
    for key, value in values.items():
        if blocks.get(prefix + key) is not None:
            values_by_key.update(leaves(value, f"{prefix}{key}."))
        else:
            values_by_key[prefix + key] = value
    return values_by_key


def test_there_are_configs():
    assert FOLDER / "default.yaml" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_config_parses_to_its_values(path):
    config = parse_config(["--config", str(path)])
    assert isinstance(config, RunConfig)
    got = leaves(config.to_dict())
    for key, value in leaves(yaml.safe_load(path.read_text())).items():
        if key == "lora.profiles":
            value = {name: dataclasses.asdict(LoraProfile(**profile)) for name, profile in value.items()}
        assert got[key] == value, key


@pytest.fixture(scope="module")
def little(cut_departments, tmp_path_factory):
    """Four bundled departments with four clients, two training records and one to evaluate each."""
    return cut_departments(tmp_path_factory.mktemp("departments"), 4, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_config_runs_a_round_on_the_micro_base(path, little, micro_base, tmp_path):
    written = yaml.safe_load(path.read_text())
    for logger in written.get("logging", {}).get("loggers", ()):
        service = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}.get(logger["class_path"].rsplit(".", 1)[1])
        if service:
            pytest.importorskip(service, reason=f"{service} is not installed; the file says how to get it")
    model = written.get("model", {})
    federation = written.get("federation", {})
    three = "krum" in federation.get("guard", {}).get("name", "") or federation.get("secure_aggregation", False)
    teams = "/" in str(federation.get("hierarchy", ""))
    clients = "4" if teams else "3" if three else "1"
    small = ["--rounds", "1", "--max-records", "2", "--clients-per-dept", clients, "--output", str(tmp_path)]
    small += ["--logging.samples=0", f"--model.name_or_path={micro_base}", "--model.revision=null"]
    cpu = ["--device-map", "cpu", "--dtype", "fp32", "--data", str(little)]
    config = parse_config(["--config", str(path), *small, *cpu])
    assert config.model.load_in_4bit == model.get("load_in_4bit", False)
    folder = fit(config)
    assert (folder / "federated_eval.json").is_file()
    assert (folder / "adapters" / "hr" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["laptop", "mobile", "workstation"])
def test_a_machines_config_over_a_runs_changes_only_the_machines_keys(name):
    run_yaml, own = FOLDER / "methods" / "flexlora.yaml", FOLDER / "clients" / f"{name}.yaml"
    alone = leaves(parse_config(["--config", str(run_yaml)]).to_dict())
    layered = leaves(parse_config(["--config", str(run_yaml), "--config", str(own)]).to_dict())
    written = leaves(yaml.safe_load(own.read_text()))
    assert {key: layered[key] for key in written} == written
    assert {key for key in alone if alone[key] != layered[key]} <= written.keys()
    assert written.keys() <= {
        "model.load_in_4bit",
        "data.max_records",
        "training.batch_size",
        "training.accumulate_grad_batches",
        "training.clients_at_once",
        "training.gradient_checkpointing",
        "fabric.precision",
        "fabric.memory_limit_mb",
    }


def test_default_yaml_has_every_key():
    assert set(leaves(yaml.safe_load((FOLDER / "default.yaml").read_text()))) == set(leaves(RunConfig().to_dict()))


def test_default_yaml_has_the_defaults_but_for_the_learning_rate():
    written = leaves(yaml.safe_load((FOLDER / "default.yaml").read_text()))
    defaults = leaves(RunConfig().to_dict())
    assert {k: v for k, v in written.items() if v != defaults[k]} == {"training.learning_rate": 5e-3}


def test_default_yaml_explains_every_key_in_one_comment():
    lines = (FOLDER / "default.yaml").read_text().splitlines()
    names = {key.rsplit(".", 1)[-1] for key in leaves(RunConfig().to_dict())}
    explained = {line.split(":")[0].strip() for line in lines if ":" in line and "# " in line.split(":", 1)[1]}
    assert names - explained == set()


def test_every_field_of_the_config_has_a_docstring_below_it():
    blocks = [RunConfig, LoraProfile, *(block for block in known_keys().values() if block is not None)]
    for cls in (ast.parse(inspect.getsource(block)).body[0] for block in blocks):
        fields = [i for i, node in enumerate(cls.body) if isinstance(node, ast.AnnAssign)]
        for index in fields:
            after = cls.body[index + 1]
            assert isinstance(after, ast.Expr), f"{cls.name}.{cls.body[index].target.id}"
            assert isinstance(after.value.value, str)


def test_help_shows_the_docstring_of_every_key(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    lines = re.sub(r"\n {10,}", " ", capsys.readouterr().out).splitlines()
    for key, block in known_keys().items():
        if block is None:
            (line,) = [line for line in lines if line.startswith(f"  --{key} ") and "(type: " in line]
            assert re.search(r"\. \(type: ", line), line
    what = "Number of rounds; under schedule.mode: buffered each one is a step of one department."
    assert f"  --federation.rounds ROUNDS {what} (type: int, default: 10)" in lines


def test_blocks_are_dataclasses_and_never_bare_dicts():
    blocks = [cls for cls in known_keys().values() if cls is not None]
    assert len(blocks) == 24
    assert all(dataclasses.is_dataclass(cls) for cls in blocks)
