"""Buffered steps against synchronous rounds where one client in ten is twenty times slower, in virtual time.

    python -m benchmarks.methods.asynchronous [--seeds 3] [--first 1] [--rounds 12] [--output DIR]

The bundled departments' records are dealt to ten clients each, eight to a client. All arms have the same base, rates,
seeds and profiles; four clients of forty are slow, and nobody knows which. Each is a run of ``fit``.

==============  ===================================================================================================
sync            five of ten clients are asked in a round, which waits for the last one
over-selected   seven are asked, and the first five are taken (Bonawitz et al. 2019)
buffered        seven of a department train at any time; each two updates are a step (FedBuff), at most 8 steps old
buffered, five  the same with five updates to a step: as many steps as there are synchronous rounds
==============  ===================================================================================================

It prints the virtual hours that each arm takes to the loss of synchronous round 10, and the loss after the updates of
`--rounds` synchronous rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path
from statistics import fmean, median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.common import markdown, number
from fl_lightning.bundled import resolve
from fl_lightning.cli import main as command_line
from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.runs.artifacts import RunArtifacts
from fl_lightning.runs.comparison.virtual_time import hours_to_loss

CONFIG = Path(__file__).parents[2] / "configs/methods/fedavg.yaml"
DEPARTMENTS, CLIENTS, RECORDS, EVAL = 4, 10, 8, 2
PER_ROUND, ASKED, BUFFER, TARGET_ROUND = 5, 7, 2, 10
SCHEDULE = "--federation.schedule."


def buffered(size: int) -> list[object]:
    """Options of an arm whose departments step with `size` updates."""
    mode = [f"{SCHEDULE}mode", "buffered", f"{SCHEDULE}buffer", size]
    return [*mode, f"{SCHEDULE}concurrency", ASKED, f"{SCHEDULE}max_staleness", 8]


ARMS = {
    "sync": ["--federation.clients_per_round", PER_ROUND],
    "over-selected": [
        "--federation.clients_per_round",
        PER_ROUND,
        f"{SCHEDULE}over_select",
        round(ASKED / PER_ROUND - 1, 6),
    ],
    "buffered": buffered(BUFFER),
    "buffered, five": buffered(PER_ROUND),
}


def deal(folder: Path, seed: int) -> Path:
    """The bundled records, dealt to `CLIENTS` clients a department."""
    for department in sorted(Path(resolve("bundled:departments")).glob("*/")):
        if not (department / "client_0").is_dir():
            continue
        for split, count in (("train", RECORDS), ("eval", EVAL)):
            lines = [line for path in sorted(department.glob(f"*/{split}.jsonl")) for line in path.open()]
            random.Random(f"{seed}{department.name}{split}").shuffle(lines)
            for client in range(CLIENTS):
                path = folder / department.name / f"client_{client}" / f"{split}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(lines[client * count : (client + 1) * count]))
    return folder


def run(arm: str, seed: int, args: argparse.Namespace) -> RunArtifacts:
    """One arm with one seed; a run that is there is read, not repeated."""
    place = Path(args.output) / f"seed_{seed}"
    folder = place / arm / "version_0"
    size = {"buffered": BUFFER, "buffered, five": PER_ROUND}.get(arm)
    rounds = args.rounds if size is None else DEPARTMENTS * PER_ROUND * args.rounds // size
    if not (folder / "adapters").is_dir():
        data = place / "data"
        options = ["--config", CONFIG, "--data", data if data.is_dir() else deal(data, seed), "--output", place / arm]
        options += ["--clients-per-dept", "all", "--rounds", rounds, "--seed", seed, "--logging.samples", 0]
        options += ["--retention.client_exports", 1, f"{SCHEDULE}clients.speed", "constant"]
        options += [f"{SCHEDULE}clients.tokens_per_second", 100, f"{SCHEDULE}clients.slow_share", 0.1]
        options += ["--evaluation.every", 1 if size is None else DEPARTMENTS]
        if code := command_line(["fit", *map(str, [*options, *ARMS[arm]])]):
            sys.exit(code)
    return read_artifacts(folder)


def main() -> None:
    """A line for each seed and arm, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", default="lightning_logs/asynchronous")
    args = parser.parse_args()
    rows: list[list[str]] = []
    ratios: dict[str, list[float]] = {}
    for seed in range(args.first, args.first + args.seeds):
        runs = {arm: run(arm, seed, args) for arm in ARMS}
        target = runs["sync"].mean_loss[TARGET_ROUND]
        hours = {arm: hours_to_loss(r.mean_loss, r.virtual_hours, target) for arm, r in runs.items()}
        final = {arm: result.mean_loss[max(result.mean_loss)] for arm, result in runs.items()}
        for arm, result in runs.items():
            time = hours[arm]
            total = number(max(result.virtual_hours.values()))
            rows.append(
                [f"{seed}", arm, number(target), "never" if time is None else number(time), number(final[arm]), total]
            )
            for rival in ("sync", "over-selected"):
                if arm.startswith("buffered"):
                    ratio = float("inf") if time is None else time / (hours[rival] or float("inf"))
                    ratios.setdefault(f"{arm}: time over {rival}", []).append(ratio)
                    ratios.setdefault(f"{arm}: final loss over {rival}", []).append(final[arm] / final[rival])
    print(markdown(("seed", "arm", "loss of round 10", "hours to it", "final loss", "hours in all"), rows))
    for name, values in ratios.items():
        print(f"{name}: mean {fmean(values):.3f}, median {median(values):.3f}, of {len(values)} seeds")


if __name__ == "__main__":
    main()
