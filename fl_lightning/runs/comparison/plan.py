"""The plan of a comparison (configs, overrides and seeds) and the folder in which it is saved.

    <output>/compare_N/compare.json            names of the configs, overrides, seeds
    <output>/compare_N/configs/<name>.yaml     copies of the config files

A comparison that is resumed is read from this folder; the original files may have changed since.
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
  --seeds N           number of seeds, counted up from the configs' seed or --seed (default: 3)
  --by-department     a row for each department too
  --resume last|DIR   continue a comparison: finished runs are skipped, interrupted ones resumed
  --output DIR        the folder for compare_N (default: the first config's output)

All options of 'fit' are applied to every config, as in --rounds 4 --max-records 32; 'fit --help' lists them.
"""

PLAN = "compare.json"
RESERVED = ("configs", PLAN, "comparison.json", "comparison.csv", "comparison.png")
"""Names in the folder, which no config can have."""


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison.

    Attributes:
        configs: {name: config}; each run replaces its seed and output.
        files: {name: config file}.
        overrides: command-line arguments that apply to all configs.
        seeds: of the runs of each config.
    """

    configs: dict[str, RunConfig]
    files: dict[str, Path]
    overrides: list[str]
    seeds: list[int]


def make_plan(argv: Sequence[str], seeds: str) -> Plan:
    """The plan for command-line arguments: ``--config A.yaml B.yaml …`` and overrides that apply to all configs.

    Raises:
        InputError: for bad arguments or configs.
    """
    if not (seeds.isascii() and seeds.isdecimal() and len(seeds) < 6 and int(seeds) >= 1):
        raise InputError(f"--seeds: expected the number of seeds, 1 or more, got {seeds!r}")
    paths, overrides = split_configs(argv)
    if not paths:
        raise InputError("compare: expected --config A.yaml B.yaml ..., got no --config")
    files = dict(zip(config_names(paths), map(Path, paths), strict=True))
    configs = {name: _parse(path, overrides) for name, path in files.items()}
    _check_comparable(configs, files)
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
    remaining = list(argv)
    while remaining:
        item = remaining.pop(0)
        if item != "--config" and not item.startswith("--config="):
            rest.append(item)
            continue
        values = [item.partition("=")[2]] if "=" in item else []
        while "=" not in item and remaining and not remaining[0].startswith("-"):
            values.append(remaining.pop(0))
        if not all(values) or not values:
            raise InputError("--config: expected one YAML file or more, got no value")
        paths += values
    return paths, rest


def config_names(paths: Sequence[str]) -> list[str]:
    """A name for each file that is valid for a folder: its stem, with a number if that is taken.

    Example:
        >>> config_names(["a/fedavg.yaml", "b/fedavg.yaml", "my config.yaml", "configs.yaml"])
        ['fedavg', 'fedavg_2', 'my_config', 'configs_2']
    """
    names: list[str] = []
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(path).stem).strip(".")[:80] or "config"
        name, number = stem, 2
        while name in (*RESERVED, *names):
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


def _check_comparable(configs: dict[str, RunConfig], files: dict[str, Path]) -> None:
    """Check that runs can be paired (same records and seeds) and that ``compare`` may start their processes."""
    settings = {
        name: {"seed": config.seed, **{f"data.{key}": value for key, value in vars(config.data).items()}}
        for name, config in configs.items()
    }
    first, *others = configs
    for name in others:
        for key, expected in settings[first].items():
            if settings[name][key] != expected:
                raise InputError(
                    f"{files[name]}: {key}: expected {expected!r} as in {files[first]}, got {settings[name][key]!r}; "
                    f"configs are compared on the same records with the same seeds: change one of them, or give --{key}"
                )
    for name, config in configs.items():
        if config.fabric.num_nodes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"{files[name]}: fabric.num_nodes: expected 1 and no torchrun, got {config.fabric.num_nodes} or a "
                "start by torchrun; compare starts the processes of fabric.devices itself"
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
            raise InputError(f"--resume last: expected a compare_N folder in {root}, got none; give another --output")
        return newest
    folder = named_folder(name, root)
    if not os.path.isfile(folder / PLAN):
        raise InputError(
            f"--resume {name!r}: expected 'last' or the folder of a comparison such as {root / 'compare_0'}, got one "
            f"without {PLAN}"
        )
    return folder


def read_plan(folder: Path) -> Plan:
    """The plan of a comparison that was started before.

    Raises:
        InputError: if its files are not as `create` writes them.
    """
    value = read_json(folder / PLAN)
    try:
        names, overrides, seeds = list(value["configs"]), list(value["overrides"]), list(value["seeds"])
        is_valid = bool(names and seeds) and all(isinstance(item, str) for item in overrides)
        is_valid = is_valid and all(type(seed) is int and seed >= 0 for seed in seeds)
    except (KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise InputError(
            f"{folder / PLAN}: expected {{configs, overrides, seeds}} as compare writes it, got something else; start "
            "a new comparison"
        )
    files = {check_name(name, f"{folder / PLAN}: config"): folder / "configs" / f"{name}.yaml" for name in names}
    return Plan({name: _parse(path, overrides) for name, path in files.items()}, files, overrides, seeds)
