"""What it costs to lose nothing: rounds with checkpoints and journal against the same rounds without.

    python -m benchmarks.systems.checkpoints [--rounds 3] [--records 32] [--repeats 5]

Both train, aggregate, evaluate and export the bundled departments alike and write in the background; one also writes
every cohort's updates, every evaluation and a checkpoint a round, each with fsync. Losses must agree to the last bit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console

from benchmarks.common import alternate, report
from fl_lightning.callbacks import RoundCheckpoint
from fl_lightning.config.parsing import parse_config
from fl_lightning.federation.journal import Journal
from fl_lightning.runs.build import build_components, make_callbacks
from fl_lightning.trainer import FederatedTrainer
from fl_lightning.training.local_clients import LocalClients


def main() -> None:
    """Alternate both and report the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/checkpoints.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = parse_config(["--max-records", str(args.records), "--rounds", str(args.rounds), "--device-map", "cpu"])
    parts = build_components(config)
    clients = LocalClients(parts.fabric, parts.module, parts.data, config.training, config.training.clients_at_once)
    losses, written = {}, {}

    def rounds(saving: bool) -> None:
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            callbacks = make_callbacks(config, Console(file=nowhere))
            trainer = FederatedTrainer(
                fabric=parts.fabric,
                callbacks=[c for c in callbacks if saving or not isinstance(c, RoundCheckpoint)],
                federation=config.federation,
                training=config.training,
                run_folder=Path(folder),
            )
            journal = Journal(Path(folder) / "checkpoints" if saving else None, trainer.writer)
            trainer.fit(parts.module, parts.data, clients=clients, journal=journal)
            losses[saving] = trainer.rows()[-1][1]["eval/loss"]
            written[saving] = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())

    seconds = alternate({"without": lambda: rounds(False), "with": lambda: rounds(True)}, args.repeats)
    if losses[True] != losses[False]:
        raise SystemExit(f"losses differ: {losses}")
    facts = {"rounds": args.rounds, "MiB at the end": {str(k): round(v / 2**20, 2) for k, v in written.items()}}
    report(f"{args.rounds} rounds with and without checkpoints", seconds, "without", facts, args.json)


if __name__ == "__main__":
    main()
