"""The table of docs/results.md: compares the configs behind it over seeds and prints it as Markdown.

    python benchmarks/evidence.py [--seeds 3] [--rounds 4] [--records 32] [--output lightning_logs]

The comparison itself is `python -m fl_lightning compare`, which an interrupted one goes on with (`--resume`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml

from fl_lightning.cli import main as command_line
from fl_lightning.files import natural_key, read_json

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = ("default", "methods/local_only", "methods/fedavg", "recommended", "methods/fedsa_lora", "methods/central")
DYNAMIC = {"enabled": True, "method": "agglomerative", "select": "dynamic", "min_clusters": 1, "mixing_ratio": 0.3}
MIXED = {
    "recommended_mixed_a": ("recommended", {**DYNAMIC, "mix": "a"}),
    "fedavg_mixed_all": ("methods/fedavg", {**DYNAMIC, "mix": "all"}),
    "fedsa_lora_mixed_a": ("methods/fedsa_lora", {**DYNAMIC, "mix": "a"}),
}
"""Configs whose departments are mixed as well: {name: (config, dept_clusters)}."""


def shown(interval: dict[str, float] | None, signed: bool = False) -> str:
    """A mean with half its interval; a dash where there is none."""
    if interval is None or interval["mean"] is None:
        return "–"
    mean = f"{interval['mean']:+.3f}" if signed else f"{interval['mean']:.3f}"
    half = interval["half_width"]
    return mean if half is None else f"{mean} ± {half:.3f}"


def markdown(comparison: dict[str, Any]) -> str:
    """One row a config, the lowest loss of departments' adapters first."""
    lines = ["| config | departments' adapters | clients' own | against default | KiB up |", "|---|---|---|---|---|"]
    configs = comparison["configs"]
    for name in sorted(configs, key=lambda name: float(configs[name]["figures"]["loss"]["mean"])):
        figures, against = configs[name]["figures"], configs[name]["loss_against_first"]
        sent = (figures["bytes_client_up"]["mean"] + figures["bytes_department_up"]["mean"]) / 1024
        difference = "0" if against is None else shown(against["interval"], signed=True)
        cells = [name, shown(figures["loss"]), shown(figures["personal_loss"]), difference, f"{sent:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the configs that have no file, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--output", default="lightning_logs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evidence-") as folder:
        paths = [str(CONFIGS / f"{name}.yaml") for name in FILES]
        for name, (config, clusters) in MIXED.items():
            values = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
            values["federation"]["dept_clusters"] = clusters
            path = Path(folder) / f"{name}.yaml"
            path.write_text(yaml.safe_dump(values))
            paths.append(str(path))
        sizes = ["--seeds", str(args.seeds), "--rounds", str(args.rounds), "--max-records", str(args.records)]
        code = command_line(["compare", "--config", *paths, *sizes, "--output", args.output])
    if code:
        sys.exit(code)
    newest = max(Path(args.output).glob("compare_*"), key=lambda path: natural_key(path.name))
    print(markdown(read_json(newest / "comparison.json")))


if __name__ == "__main__":
    main()
