"""What late updates cost: the loss of buffered steps after as many updates as synchronous rounds have taken.

    python -m benchmarks.methods.late_updates [--seeds 3] [--rounds 60] [--output DIR]

The bundled records are dealt to forty clients of one department, sixteen to a client, each of one bundled department,
so that all arms make the same number of steps of five updates on the same records. Each arm is a run of ``fit``.

========================  ======================================================================================
sync                      five of forty clients are asked in a round
few late, constant        ten train at any time; one client in ten is four times slower, and comes eight steps late
few late, polynomial      the same with s(τ) = (1 + τ)^-0.5, which makes steps smaller
most late, constant       thirty train at any time, at speeds that differ: most updates are four to eight steps old
most late, polynomial     the same with s(τ) = (1 + τ)^-0.5
========================  ======================================================================================
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path
from statistics import fmean

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.common import markdown, number
from fl_lightning.bundled import resolve
from fl_lightning.cli import main as command_line
from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.runs.artifacts import RunArtifacts

CONFIG = Path(__file__).parents[2] / "configs/methods/fedavg.yaml"
CLIENTS, RECORDS, HELD_OUT, BUFFER = 40, 16, 4, 5
SCHEDULE = "--federation.schedule."


def late(staleness: str, in_flight: int, **speeds: object) -> dict[str, object]:
    """Options of an arm with buffers."""
    schedule = {"mode": "buffered", "buffer": BUFFER, "concurrency": in_flight, "max_staleness": 8}
    clients = {f"clients.{name}": value for name, value in speeds.items()}
    return {SCHEDULE + name: value for name, value in (schedule | {"staleness": staleness} | clients).items()}


FEW = {"speed": "constant", "slow_share": 0.1, "slow_factor": 4}
MOST = {"speed": "log_normal", "sigma": 0.5}
ARMS = {
    "sync": {"--federation.clients_per_round": BUFFER, f"{SCHEDULE}clients.speed": "constant"},
    "few late, constant": late("constant", 10, **FEW),
    "few late, polynomial": late("polynomial", 10, **FEW),
    "most late, constant": late("constant", 30, **MOST),
    "most late, polynomial": late("polynomial", 30, **MOST),
}


def deal(folder: Path, seed: int) -> Path:
    """The bundled records, dealt to `CLIENTS` clients of the department ``everybody``, in turn from each department."""
    for split, count in (("train", RECORDS), ("eval", HELD_OUT)):
        piles = []
        for department in sorted(Path(resolve("bundled:departments")).glob("*/")):
            lines = [line for path in sorted(department.glob(f"*/{split}.jsonl")) for line in path.open()]
            random.Random(f"{seed}{department.name}{split}").shuffle(lines)
            piles += [lines] if lines else []
        for client in range(CLIENTS):
            turn, pile = divmod(client, len(piles))
            path = folder / "everybody" / f"client_{client}" / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(piles[pile][turn * count : (turn + 1) * count]))
    return folder


def run(arm: str, seed: int, args: argparse.Namespace) -> RunArtifacts:
    """One arm with one seed; a run that is there is read, not repeated."""
    place = Path(args.output) / f"seed_{seed}"
    folder, data = place / arm / "version_0", place / "data"
    if not (folder / "adapters").is_dir():
        options: dict[str, object] = {
            "--config": CONFIG,
            "--data": data if data.is_dir() else deal(data, seed),
            "--output": place / arm,
            "--clients-per-dept": "all",
            "--rounds": args.rounds,
            "--seed": seed,
            "--logging.samples": 0,
            "--retention.client_exports": 1,
            "--evaluation.every": 4,
            f"{SCHEDULE}clients.tokens_per_second": 100,
        }
        if code := command_line(["fit", *(str(part) for pair in (options | ARMS[arm]).items() for part in pair)]):
            sys.exit(code)
    return read_artifacts(folder)


def main() -> None:
    """A line for each seed and arm, and the mean of each arm's ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", default="lightning_logs/late_updates")
    args = parser.parse_args()
    rows: list[list[str]] = []
    ratios: dict[str, list[float]] = {}
    for seed in range(1, args.seeds + 1):
        losses = {arm: max(run(arm, seed, args).mean_loss.items())[1] for arm in ARMS}
        for arm, loss in losses.items():
            ratios.setdefault(arm, []).append(loss / losses["sync"])
            rows.append([f"{seed}", arm, number(loss), f"{ratios[arm][-1]:.3f}"])
    print(markdown(("seed", "arm", "final loss", "over sync"), rows))
    for arm, values in ratios.items():
        print(f"{arm}: mean {fmean(values):.3f}, at most {max(values):.3f}, of {len(values)} seeds")


if __name__ == "__main__":
    main()
