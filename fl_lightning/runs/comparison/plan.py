"""What ``compare`` is asked for: configs, overrides and seeds, and the folder that says so.

    <output>/compare_N/compare.json            names of the configs, overrides, seeds
    <output>/compare_N/configs/<name>.yaml     the configs as they were given

A comparison that goes on is read from there; the files it was begun with may have changed or gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name, read_json, write_json, write_text
from fl_lightning.storage.run_folder import create_numbered_folder, named_folder, newest_folder

USAGE = """usage: fl-lightning compare --config A.yaml B.yaml ... [--seeds 3] [OPTIONS]
       fl-lightning compare --resume last|DIR [--output DIR]

Runs every config with every seed, all with the same seeds on the same records, and compares the others with the first:
tables here, comparison.json, comparison.csv and comparison.png in the folder compare_N under --output.

  --config FILE ...   YAML files as 'fit' reads them
  --seeds N           seeds from the configs' seed on, or from --seed (default: 3)
  --by-department     a row for each department too
  --resume last|DIR   go on with a comparison: finished runs are passed over, interrupted ones continue
  --output DIR        where compare_N is made (default: the first config's output)

All options of 'fit' are applied to every config, as in --rounds 4 --max-records 32; 'fit --help' lists them.
"""

PLAN = "compare.json"
TAKEN = ("configs", PLAN, "comparison.json", "comparison.csv", "comparison.png")
"""Names in the folder that no config can have."""


@dataclass(frozen=True)
class Plan:
    """What a comparison is made of.

    Attributes:
        configs: {name: config}; each run has a seed and an output of its own instead.
        files: {name: the file it is from}.
        overrides: arguments that were applied to all of them.
        seeds: those that each config is run with.
    """

    configs: dict[str, RunConfig]
    files: dict[str, Path]
    overrides: list[str]
    seeds: list[int]


def make_plan(argv: Sequence[str], seeds: str) -> Plan:
    """The plan that arguments mean: ``--config A.yaml B.yaml …`` and overrides that go to all of them.

    Raises:
        InputError: one line saying what was got and what was wanted.
    """
    if not (seeds.isascii() and seeds.isdecimal() and len(seeds) < 6 and int(seeds) >= 1):
        raise InputError(f"--seeds: got {seeds!r}, wanted how many, an integer of at least 1")
    paths, overrides = split_configs(argv)
    if not paths:
        raise InputError("compare: no --config, wanted --config A.yaml B.yaml ...")
    files = dict(zip(names_of(paths), map(Path, paths), strict=True))
    configs = {name: _parse(path, overrides) for name, path in files.items()}
    _check_alike(configs, files)
    base = next(iter(configs.values())).seed
    return Plan(configs, files, overrides, [base + number for number in range(int(seeds))])


def split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files after ``--config``, all other arguments).

    Example:
        >>> split_configs(["--config", "a.yaml", "b.yaml", "--rounds", "2", "--config=c.yaml"])
        (['a.yaml', 'b.yaml', 'c.yaml'], ['--rounds', '2'])
    """
    paths: list[str] = []
    rest: list[str] = []
    left = list(argv)
    while left:
        item = left.pop(0)
        if item != "--config" and not item.startswith("--config="):
            rest.append(item)
            continue
        found = [item.partition("=")[2]] if "=" in item else []
        while "=" not in item and left and not left[0].startswith("-"):
            found.append(left.pop(0))
        if not all(found) or not found:
            raise InputError("--config: no value, wanted one YAML file or more")
        paths += found
    return paths, rest


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each file that is safe as a folder's: its stem, with a number where that is taken.

    Example:
        >>> names_of(["a/fedavg.yaml", "b/fedavg.yaml", "my config.yaml", "configs.yaml"])
        ['fedavg', 'fedavg_2', 'my_config', 'configs_2']
    """
    names: list[str] = []
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(path).stem).strip(".")[:80] or "config"
        name, number = stem, 2
        while name in (*TAKEN, *names):
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def _parse(path: Path, overrides: Sequence[str]) -> RunConfig:
    try:
        return parse_config(["--config", str(path), *overrides], prog="fl_lightning compare")
    except InputError as error:
        if str(path) in str(error) or str(error).startswith(("--", "unknown argument")):
            raise
        raise InputError(f"{path}: {error}") from error


def _check_alike(configs: dict[str, RunConfig], files: dict[str, Path]) -> None:
    """Check that runs of different configs can be paired: the same records and seeds, in processes that we start."""
    (first, one), *others = configs.items()
    for name, config in others:
        ours, theirs = ({"seed": c.seed, **{f"data.{k}": v for k, v in vars(c.data).items()}} for c in (one, config))
        for key, wanted in ours.items():
            if theirs[key] != wanted:
                raise InputError(
                    f"{files[name]}: {key}: got {theirs[key]!r}, wanted {wanted!r} as in {files[first]}; all are "
                    f"compared on the same records with the same seeds: change one of them, or give --{key}"
                )
    for name, config in configs.items():
        if config.fabric.num_nodes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"{files[name]}: fabric.num_nodes: got {config.fabric.num_nodes} or a start by torchrun, wanted one "
                "machine and no torchrun; compare starts the processes of fabric.devices itself"
            )


def create(plan: Plan, root: Path) -> Path:
    """Make a new ``compare_N`` folder under `root`; it has its plan and its configs as soon as it exists.

    Raises:
        InputError: if it cannot be made.
    """

    def fill(folder: Path) -> None:
        for name, path in plan.files.items():
            write_text(folder / "configs" / f"{name}.yaml", path.read_text(encoding="utf-8"))
        files = {name: str(path) for name, path in plan.files.items()}
        write_json(folder / PLAN, {"configs": files, "overrides": plan.overrides, "seeds": plan.seeds})

    return create_numbered_folder(root, "compare", fill)


def find_comparison(name: str, root: Path) -> Path:
    """The folder of a comparison: a path, a name under `root`, or ``last`` for the newest ``compare_N`` there.

    Raises:
        InputError: if there is none.
    """
    if name == "last":
        if (newest := newest_folder(root, "compare", PLAN)) is None:
            raise InputError(f"--resume last: no compare_N folder in {root}, expected one; name another --output")
        return newest
    folder = named_folder(name, root)
    if not os.path.isfile(folder / PLAN):
        raise InputError(
            f"--resume {name!r}: no {PLAN} in it; expected a comparison such as {root / 'compare_0'} or 'last'"
        )
    return folder


def read_plan(folder: Path) -> Plan:
    """The plan of a comparison that was begun before.

    Raises:
        InputError: if its files are not as `create` writes them.
    """
    value = read_json(folder / PLAN)
    try:
        names, overrides, seeds = list(value["configs"]), list(value["overrides"]), list(value["seeds"])
        ok = bool(names and seeds) and all(isinstance(item, str) for item in overrides)
        ok = ok and all(type(seed) is int and seed >= 0 for seed in seeds)
    except (KeyError, TypeError):
        ok = False
    if not ok:
        raise InputError(f"{folder / PLAN}: wanted {{configs, overrides, seeds}} as compare writes it; start a new one")
    files = {check_name(name, f"{folder / PLAN}: config"): folder / "configs" / f"{name}.yaml" for name in names}
    return Plan({name: _parse(path, overrides) for name, path in files.items()}, files, overrides, seeds)
