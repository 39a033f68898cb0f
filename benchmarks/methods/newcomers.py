"""What a newcomer gains: its choice between a run's adapters, and rounds of local training from four starts.

    python -m benchmarks.methods.newcomers departments conflict [--seed 1] [--rounds 6] [--records 16] [--few 8]
        [--output DIR] [--classic DIR]

The last client of every department and the last department are left out of the run; they are the newcomers, with `few`
training records each. Each trains alone for 1, 2 and 4 rounds of one epoch on these records, starting from base, from
its department's adapter, from that of all, and on top of the one adapter that it has chosen without training. Losses
are means over newcomers on held-out records, which choose nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.common import markdown, number
from benchmarks.methods.federations import CLASSIC, build
from fl_lightning.bundled import resolve
from fl_lightning.cli import main as command_line
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.layout import find_clients
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.runs.chains import ROOT
from fl_lightning.runs.newcomers import load_newcomers
from fl_lightning.state import LoraState
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.run_layout import NEWCOMERS, newcomer_adapter
from fl_lightning.training.local_clients import LocalClients

CONFIG = str(Path(__file__).parents[2] / "configs/methods/fedavg.yaml")
ROUNDS = (0, 1, 2, 4)
"""Rounds of local training after which newcomers are evaluated."""


def split(source: Path, run: Path, newcomers: Path, few: int) -> None:
    """Copy a data root into the run's and the newcomers', which have `few` training records each."""
    departments = find_clients(source)
    for department, clients in departments.items():
        for client in clients:
            is_new = client is clients[-1] or department == list(departments)[-1]
            folder = (newcomers if is_new else run) / department / client.client
            folder.mkdir(parents=True)
            records = client.train.read_text(encoding="utf-8").splitlines()
            (folder / "train.jsonl").write_text("\n".join(records[: few if is_new else None]) + "\n", encoding="utf-8")
            assert client.eval is not None
            shutil.copy(client.eval, folder / "eval.jsonl")


def run(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one federation, kept in a file."""
    place = Path(args.output) / arm
    if (place / "figures.json").is_file():
        figures: dict[str, Any] = read_json(place / "figures.json")
        return figures
    source = resolve("bundled:departments")
    if arm != "departments":
        source = place / "data"
        build(arm, source, seed=args.seed, train=args.records, held_out=12, classic=args.classic)
    split(source, place / "run", place / "newcomers", args.few)
    options = ["--data", place / "run", "--clients-per-dept", "all", "--seed", args.seed, "--rounds", args.rounds]
    options += ["--max-records", args.records, "--logging.samples", 0, "--output", place, "--personal.root", "trained"]
    folder = place / "version_0"
    for words in (
        ["fit", "--config", CONFIG, *options],
        ["personalize", "--run", folder, "--data", place / "newcomers"],
    ):
        if code := command_line([str(word) for word in words]):
            sys.exit(code)
    figures = {"chosen": read_json(folder / NEWCOMERS)["clients"], "trained": train_from_each_start(folder, place)}
    write_json(place / "figures.json", figures)
    return figures


def train_from_each_start(folder: Path, place: Path) -> dict[str, dict[str, list[float]]]:
    """{newcomer: {start: held-out losses after `ROUNDS`}}."""
    config = load_run_config(folder)
    components = build_components(config)
    newcomers = load_newcomers(place / "newcomers", config, components)
    checkpoints = [newest_checkpoint(path) for path in (folder, folder / "personal" / "root" / "version_0")]
    assert checkpoints[0] is not None
    assert checkpoints[1] is not None
    (state, _), (of_all, _) = checkpoints[0], checkpoints[1]
    data = {c: replace(client, train=client.selection) for c, client in newcomers.items()}
    clients = LocalClients(components.fabric, components.module, data, config.training, "auto")
    losses: dict[str, dict[str, list[float]]] = {}
    for client_id, client in data.items():
        chosen = read_lora_adapter(folder / newcomer_adapter(client_id), state.initial, any_rank=True)
        starts: dict[str, tuple[LoraState, Mapping[str, Any]]] = {
            "base": (state.initial, {}),
            "root": (of_all.final_adapter(ROOT), {}),
            "chosen adapter": (state.initial, chosen),
        }
        if client.department in state.departments:
            starts["department"] = (state.final_adapter(client.department), {})
        losses[client_id] = {
            name: _train(clients, client, start, frozen, config.seed) for name, (start, frozen) in starts.items()
        }
    return losses


def _train(
    clients: LocalClients, client: ClientData, start: LoraState, frozen: Mapping[str, Any], seed: int
) -> list[float]:
    """Held-out losses after `ROUNDS` rounds of training on a client's records, on top of a frozen product."""
    losses, state = {}, start
    for round_num in range(max(ROUNDS) + 1):
        task = ClientTask(client.client_id, round_num, state, seed, frozen_product=frozen)
        if round_num:
            (update,) = clients.fit([task])
            state = update.state
        (metrics,) = clients.evaluate([(task.adapter(state), client.client_id)])
        losses[round_num] = metrics.loss_sum / metrics.num_tokens
    return [losses[round_num] for round_num in ROUNDS]


def rows(figures: Mapping[str, Any], ids: list[str]) -> list[list[str]]:
    """Mean losses of some newcomers: of each start by rounds, then of what they choose without training."""
    table = []
    for start in ("base", "department", "root", "chosen adapter"):
        runs = [figures["trained"][c][start] for c in ids if start in figures["trained"][c]]
        if runs:
            table.append([start, *(number(fmean(losses)) for losses in zip(*runs, strict=True))])
    for kind in ("level", "mixture"):
        table.append([kind, number(fmean(figures["chosen"][c][kind] for c in ids)), *["–"] * (len(ROUNDS) - 1)])
    return table


def main() -> None:
    """A table for the clients of known departments, and one for those of the new one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--output", default="lightning_logs/newcomers")
    parser.add_argument("--classic", type=Path, default=CLASSIC)
    args = parser.parse_args()
    for arm in args.arms:
        figures = run(arm, args)
        known = [c for c, starts in figures["trained"].items() if "department" in starts]
        new = [c for c in figures["trained"] if c not in known]
        for name, ids in ((f"{len(known)} clients of known departments", known), (f"{len(new)} of a new one", new)):
            head = (f"{arm}: {name}", *(f"{n} rounds" for n in ROUNDS))
            print(markdown(head, rows(figures, ids)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
