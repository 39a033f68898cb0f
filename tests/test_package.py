import ast
import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fl_lightning

PACKAGE = Path(fl_lightning.__file__).parent
REPOSITORY = PACKAGE.parent

HAS_FLOWER = importlib.util.find_spec("flwr") is not None
OF_FLOWER = {"DepartmentLoraClient"}
HEAVY = {"lightning", "transformers", "peft", "bitsandbytes", "torchmetrics", "torch", "numpy"}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for top in (PACKAGE, PACKAGE / "callbacks") for p in top.rglob("*.py")}


def loaded_after(code):
    """Top-level packages in sys.modules after a fresh interpreter ran the code."""
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_package_loads_nothing_heavy():
    assert not loaded_after("import fl_lightning, fl_lightning.config, fl_lightning.cli") & HEAVY


def test_every_package_is_listed_for_setuptools():
    text = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r'"([\w.]+)"', block[1]))
    packages = {f"fl_lightning.{m}".rstrip(".") for m, p in FILES.items() if p.name == "__init__.py"}
    assert listed == packages


def test_files_stay_short_and_few_are_at_the_top():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: length for path, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize(
    "folder",
    [path.parent for path in sorted(PACKAGE.rglob("__init__.py")) if "====" in path.read_text()],
    ids=lambda folder: str(folder.relative_to(PACKAGE)),
)
def test_a_folders_table_names_each_of_its_files(folder):
    table = (folder / "__init__.py").read_text()
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {module for module in modules if not re.search(rf"\b{module}\b", table)} == set()
    assert len(list(PACKAGE.glob("*.py"))) <= 15


def test_callbacks_are_a_link_to_the_folder_at_the_top():
    assert (PACKAGE / "callbacks").is_symlink()
    assert (PACKAGE / "callbacks").resolve() == (REPOSITORY / "callbacks").resolve()


def without_flower(name):
    return pytest.param(name, marks=pytest.mark.skipif(not HAS_FLOWER, reason="flwr is not installed"))


@pytest.mark.parametrize("name", [without_flower(n) if n in OF_FLOWER else n for n in fl_lightning.__all__])
def test_public_name_resolves_to_what_its_home_defines(name):
    value = getattr(fl_lightning, name)
    assert getattr(value, "__name__", name) in (name, "dict")


def test_contracts_names_are_public():
    wanted = """LoraClientModule FederatedDataModule FederatedTrainer create_lora_model collect_lora_state
    collect_lora_parameter_names export_lora_adapter load_adapter_model flora_weighted_aggregate
    determine_optimal_clusters department_level_clustering cluster_aware_average_selected mix_with_cluster_average"""
    assert set(wanted.split()) <= set(fl_lightning.__all__)


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = {alias.asname: (node.module, alias.name) for node in tree.body for alias in node.names}
    assert sorted(names) == fl_lightning.__all__
    for name, (module, original) in names.items():
        assert original == name
        if name in OF_FLOWER and not HAS_FLOWER:
            continue
        assert getattr(importlib.import_module(module), name) is getattr(fl_lightning, name)


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'FederatedTrainr'"):
        fl_lightning.FederatedTrainr  # noqa: B018


def test_dir_lists_public_names():
    assert set(fl_lightning.__all__) <= set(dir(fl_lightning))


def with_examples():
    for module in sorted(m for m in FILES if m not in ("__main__", "bundled.tiny_base.pretrain")):
        text = FILES[module].read_text()
        if ">>>" in text:
            yield pytest.param(module, marks=[pytest.mark.slow] if "load_base_model(" in text else [])


@pytest.mark.parametrize("module", with_examples())
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"fl_lightning.{module}".rstrip(".")))
    assert result.attempted > 0
    assert result.failed == 0


def test_pkgutil_finds_the_modules_that_are_on_disk():
    found = {m.name for m in pkgutil.walk_packages(fl_lightning.__path__, "fl_lightning.")}
    assert found == {f"fl_lightning.{m}" for m in FILES if m}


DANGEROUS = """\
import pickle
import json, pickle as p
from pickle import loads
from cloudpickle.cloudpickle import dumps
from six.moves import cPickle
torch.load(path)
torch.load(path, weights_only=False)
import torch as t; t.load(path)
from torch import load; load(path)
eval(text)
exec(text)
numpy.load(path, allow_pickle=True)
yaml.load(text)
yaml.load(text, yaml.Loader)
yaml.load(text, Loader=yaml.UnsafeLoader)
from yaml import full_load_all; full_load_all(text)
subprocess.run("ls", shell=True)
os.system("ls")
from os import popen; popen("ls")
import callbacks
from . import flora
"""
HARMLESS = """\
model.eval()
model.requires_grad_(False).eval()
re.compile("a")
torch.compile(model)
self.exec(text)
json.load(file)
yaml.safe_load(text)
from safetensors.torch import load; load(data)
subprocess.run(["ls"], shell=False)
"""
IMPORTS = "import json\nimport os\nimport re\nimport subprocess\nimport numpy\nimport torch\nimport yaml\n"


def dangers(code):
    """Lines of the code in which ruff, as the project configures it, finds a danger."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "--no-cache"]
    command += ["--stdin-filename", "fl_lightning/some.py", "-"]
    done = subprocess.run(command, input=IMPORTS + code, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    first = IMPORTS.count("\n")
    problems = [p for p in json.loads(done.stdout) if p["code"].startswith(("S1", "S3", "S5", "S6", "TID"))]
    return {problem["location"]["row"] - first for problem in problems}


def test_linter_sees_each_danger():
    lines = DANGEROUS.splitlines()
    assert [lines[n] for n in range(len(lines)) if n + 1 not in dangers(DANGEROUS)] == []


def test_linter_leaves_harmless_lines_alone():
    assert dangers(HARMLESS) == set()


def test_version_is_the_distributions():
    from importlib.metadata import version

    declared = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version("fl-lightning") == declared[1]
