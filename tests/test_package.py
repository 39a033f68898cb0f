import ast
import doctest
import importlib
import importlib.util
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
HEAVY = {"lightning", "transformers", "peft", "bitsandbytes", "torchmetrics"}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for top in (PACKAGE, PACKAGE / "callbacks") for p in top.rglob("*.py")}


def imports(path):
    """Full names of the modules that a file imports anywhere, those for type checkers only left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for child in node.body
        for inner in ast.walk(child)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(n if n.removeprefix("fl_lightning.") in FILES else node.module for n in names)
    return found


def own_imports(path):
    return {n.removeprefix("fl_lightning").removeprefix(".") for n in imports(path) if n.startswith("fl_lightning")}


PURE = ("flora", "mixing", "linalg", "clustering", "privacy", "aggregation", "storage", "state", "config", "seeding")
"""The maths and what it rests on: tests in milliseconds and is reusable without any of HEAVY."""


def is_pure(module):
    return module.split(".")[0] in PURE


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("callbacks.")])
def test_callbacks_share_only_their_base(module):
    allowed = {"callbacks.base"} | ({"callbacks.evaluation"} if module == "callbacks.rich_progress" else set())
    assert {m for m in own_imports(FILES[module]) if m.startswith("callbacks")} <= allowed


@pytest.mark.parametrize("module", sorted(filter(is_pure, FILES)))
def test_maths_names_no_heavy_library(module):
    assert not {name.split(".")[0] for name in imports(FILES[module])} & HEAVY


def test_only_the_base_model_loader_knows_bitsandbytes():
    knows = [m for m, p in FILES.items() if "bitsandbytes" in {n.split(".")[0] for n in imports(p)}]
    assert knows == ["modeling.base_model"]


def loaded_after(code):
    """Top-level packages in sys.modules after a fresh interpreter ran the code."""
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_maths_loads_neither_lightning_nor_transformers_nor_peft():
    loaded = loaded_after("\n".join(f"import fl_lightning.{m}" for m in filter(is_pure, FILES)))
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_package_loads_nothing_heavy():
    assert not loaded_after("import fl_lightning, fl_lightning.config, fl_lightning.cli") & {*HEAVY, "torch", "numpy"}


def test_every_package_is_listed_for_setuptools():
    text = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r'"([\w.]+)"', block[1]))
    packages = {f"fl_lightning.{m}".rstrip(".") for m, p in FILES.items() if p.name == "__init__.py"}
    assert listed == packages


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
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert sorted(seen) == fl_lightning.__all__
    for name, (home, original) in seen.items():
        assert original == name
        if name in OF_FLOWER and not HAS_FLOWER:
            continue
        assert getattr(importlib.import_module(home), name) is getattr(fl_lightning, name)


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


@pytest.mark.parametrize("module", sorted(FILES))
def test_nothing_is_unpickled(module):
    tree = ast.parse(FILES[module].read_text())
    assert not {name.split(".")[0] for name in imports(FILES[module])} & {"pickle", "cloudpickle", "dill", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("yaml", "load"), ("np", "load")}


PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
SOURCES = sorted(
    path for top in ("fl_lightning", "callbacks", "benchmarks") for path in (REPOSITORY / top).rglob("*.py")
)


def dangers(text):
    """What in a source file could run code that comes from a file, a message or a config: (line, what) each."""
    tree = ast.parse(text)
    homes = {}  # {name in this file: what it was imported as}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            homes.update({alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname})
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            homes.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
            names = [node.module or "", *(alias.name for alias in node.names)]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in PICKLES:
            found.append((node.lineno, f"the word {node.value}"))  # importlib.import_module("pickle")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        first, dot, rest = name.partition(".")
        name = homes.get(first, first) + dot + rest
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        loader = given.get("Loader", ast.unparse(node.args[1]) if len(node.args) > 1 else "")
        if (
            name.removeprefix("builtins.") in ("eval", "exec", "compile")
            or name in SHELLS
            or given.get("shell", "False") != "False"
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
            or (name in ("yaml.load", "yaml.load_all") and loader.split(".")[-1] not in SAFE_LOADERS)
            or re.fullmatch(r"yaml\.(unsafe|full)_load(_all)?", name)
        ):
            found.append((node.lineno, ast.unparse(node)))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_source_runs_nothing_that_a_file_says(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


def test_sources_are_those_of_the_package_the_callbacks_and_the_benchmarks():
    found = {path.relative_to(REPOSITORY).as_posix() for path in SOURCES}
    assert {"fl_lightning/trainer.py", "callbacks/federated_round.py", "benchmarks/common.py"} <= found
    assert len(found) >= len(FILES)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import json, pickle as p",
        "from pickle import loads",
        "from cloudpickle.cloudpickle import dumps",
        "from six.moves import cPickle",
        "importlib.import_module('pickle')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "import torch as t; t.load(path)",
        "from torch import load; load(path)",
        "from torch import load as read; read(path)",
        "eval(text)",
        "exec(text)",
        "builtins.exec(text)",
        "compile(text, '', 'exec')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, None, allow_pickle=flag)",
        "import numpy; numpy.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "yaml.load_all(text, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(text)",
        "from yaml import full_load_all; full_load_all(text)",
        "subprocess.run('ls', shell=True)",
        "Popen('ls', shell=flag)",
        "os.system('ls')",
        "from os import popen; popen('ls')",
    ],
)
def test_each_danger_is_seen(line):
    assert len(dangers(f"x = 1\n{line}\n")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "model.requires_grad_(False).eval()",
        "re.compile('a')",
        "torch.compile(model)",
        "self.exec(text)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "json.load(file)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.load(text, yaml.CSafeLoader)",
        "from safetensors.torch import load; load(data)",
        "subprocess.run(['ls'], shell=False)",
        "text = 'nothing is pickled, no eval(x), no shell=True'",
    ],
)
def test_what_is_no_danger_is_let_be(line):
    assert dangers(line) == []


@pytest.mark.parametrize("module", sorted(FILES))
def test_top_level_callbacks_folder_is_never_imported(module):
    assert not {n for n in imports(FILES[module]) if n.split(".")[0] == "callbacks"}


def test_version_is_the_distributions():
    from importlib.metadata import version

    declared = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version("fl-lightning") == declared[1]
