"""What guards are good for: eight clients of one department, some of them hostile, every guard against every attack.

    python -m benchmarks.methods.attacks [--rounds 2] [--records 16]

The clients are those of the bundled customer_support department, each cut in two. A hostile client sends its update
times −10, noise of ten times an update's length, NaN, or trains on answers that were shuffled among its records.
Figures are the held-out loss of the department's adapter over all eight clients' records, relative to the plain mean of
a run without hostile clients; beside it whom the guard left out in the last round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import write_json
from fl_lightning.aggregation.robust import GUARDS
from fl_lightning.bundled import resolve
from fl_lightning.callbacks import FederatedRound
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, FederationConfig, FloraConfig, GuardConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import RunError
from fl_lightning.evaluation.departments import evaluate_departments
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, CohortJournal, OnStep
from fl_lightning.runs.build import build_components
from fl_lightning.seeding import derive_seed
from fl_lightning.trainer import FederatedTrainer
from fl_lightning.training.local_clients import LocalClients

ATTACKS = ("times −10", "noise", "NaN", "shuffled answers")


class Hostile(LocalClients):
    """Clients of which some send something else than what they learned."""

    attack: str = ""
    who: Sequence[str] = ()

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Honest updates, but for those of the hostile clients."""
        for task, update in zip(tasks, super().fit(tasks, on_step, journal), strict=True):
            if task.client_id not in self.who or self.attack == "shuffled answers":
                yield update
                continue
            generator = torch.Generator().manual_seed(derive_seed(0, "attack", task.round_num, task.client_id))
            moved = {n: t - task.start[n] for n, t in update.state.items()}
            length = sum(float(t.square().sum()) for t in moved.values()) ** 0.5
            noise = {n: torch.randn(t.shape, generator=generator) for n, t in moved.items()}
            loud = 10 * length / sum(float(t.square().sum()) for t in noise.values()) ** 0.5
            sent: Mapping[str, Mapping[str, torch.Tensor]] = {
                "times −10": {n: -10 * t for n, t in moved.items()},
                "noise": {n: loud * t for n, t in noise.items()},
                "NaN": {n: torch.full_like(t, float("nan")) for n, t in moved.items()},
            }
            state = {n: task.start[n] + t for n, t in sent[self.attack].items()}
            yield dataclasses.replace(update, state=state, metrics=None)


def write_departments(root: Path, records: int, shuffled: Sequence[str]) -> None:
    """Eight clients of customer_support; answers of some are shuffled among their records."""
    for number in range(8):
        source = resolve("bundled:departments") / "customer_support" / f"client_{number // 2}"
        folder = root / "support" / f"client_{number}"
        folder.mkdir(parents=True)
        for split, count in (("train", records), ("eval", 6)):
            lines = (source / f"{split}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines[number % 2 * count : (number % 2 + 1) * count]]
            if split == "train" and f"support/client_{number}" in shuffled:
                key = "output" if "output" in rows[0] else "completion"
                answers = [row[key] for row in rows]
                random.Random(number).shuffle(answers)
                rows = [{**row, key: answer} for row, answer in zip(rows, answers, strict=True)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Every guard against every attack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/attacks.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hostile = {count: [f"support/client_{n}" for n in (3, 6)[:count]] for count in (1, 2)}

    def play(guard: str, attack: str, who: Sequence[str]) -> tuple[float, list[str]]:
        """(loss of the department's adapter, whom the guard left out)."""
        with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
            write_departments(Path(folder), args.records, who if attack == "shuffled answers" else ())
            config = parse_config(
                ["--data", folder, "--clients-per-dept", "8", "--learning-rate", "5e-3", "--device-map", "cpu"]
            )
            parts = build_components(config)
        clients = Hostile(parts.fabric, parts.module, parts.data, config.training, "auto")
        clients.attack, clients.who = attack, who
        federation = FederationConfig(
            rounds=args.rounds,
            flora=FloraConfig(momentum=1.0),
            guard=GuardConfig(name=guard, f=2, fraction=0.25),
            client_clusters=ClientClustersConfig(num_clusters=1),
            dept_clusters=DeptClustersConfig(enabled=False),
        )
        trainer = FederatedTrainer(
            fabric=parts.fabric,
            callbacks=[FederatedRound(federation)],
            federation=federation,
            training=config.training,
        )
        state = trainer.fit(parts.module, parts.data, clients=clients)
        figures, _ = evaluate_departments(clients, parts.data, state.departments)
        return figures["support"]["loss"], sorted(trainer.report.departments["support"].rejected)

    clean, _ = play("none", "", ())
    rows: dict[str, dict[str, dict[str, object]]] = {}
    table = Table(title=f"loss over that of the clean mean ({clean:.3f})", title_justify="left")
    table.add_column("guard")
    cases = [("none malicious", "", ()), *((f"{a}, {n} of 8", a, who) for a in ATTACKS for n, who in hostile.items())]
    for title, _, _ in cases:
        table.add_column(title, justify="right")
    for guard in ("none", *GUARDS):
        rows[guard] = {}
        for title, attack, who in cases:
            try:
                loss, out = play(guard, attack, who)
            except RunError:  # Krum has too few clients left where some were refused before it looked
                loss, out = float("inf"), []
            named = {f"client_{w.rsplit('_', 1)[1]}" for w in who}
            rows[guard][title] = {"relative": loss / clean, "left out": out, "named": bool(named) and named <= set(out)}
        found = rows[guard].values()
        table.add_row(guard, *(f"{r['relative']:.2f}{' !' if r['named'] else ''}" for r in found))
    Console(width=160).print(table)
    Console().print("! the guard, or the check of updates, left the hostile clients out by name")
    write_json(args.json, {"clean": clean, "rounds": args.rounds, "records": args.records, "rows": rows})


if __name__ == "__main__":
    main()
