"""One run, killed again and again at random moments and resumed each time, against one that was left alone.

    python -m benchmarks.systems.chaos [--kills 50] [--rounds 40] [--processes 1]

Every life of the run is a process of its own that gets SIGKILL after a random time: while it loads, trains, evaluates,
writes or resumes. After each kill whatever has a name must be whole: JSON files parse, safetensors files open, the
newest checkpoint matches its manifest. At the end every file must have the SHA-256 it has in the undisturbed run, and
every logged figure but memory the same value, once. Processes are forked from one that has done the imports, or fifty
lives would be mostly imports.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

NOT_COMPARED = ("metrics.csv", "events.out.tfevents.", "hparams.yaml", "config.yaml", ".lock", "checkpoints/")
"""Rows hold memory figures, events and checkpoints clock times or these rows, config.yaml the output folder."""


def results(run_folder: Path) -> dict[str, Any]:
    """What two equal runs have in common: {path: SHA-256}, the rows of metrics.csv and TensorBoard's points."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run_folder.rglob("*") if p.is_file()):
        name = path.relative_to(run_folder).as_posix()
        if not name.startswith(NOT_COMPARED):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    with (run_folder / "metrics.csv").open(newline="") as file:
        own = ("memory/", "seconds/")  # these differ from run to run
        rows = [{k: v for k, v in row.items() if not k.startswith(own)} for row in csv.DictReader(file)]
    found["rows"] = rows
    found["points"] = points(run_folder)
    return found


def points(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} as they stand in all event files, nothing purged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("memory/", "seconds/"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def check_whole(run_folder: Path) -> None:
    """Whatever has its final name is whole.

    Raises:
        AssertionError: naming the file that is not.
    """
    from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint
    from fl_lightning.storage.tensors import read_state

    for path in run_folder.rglob("*"):
        if ".tmp" in "".join(part for part in path.parts if part.startswith(".")):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                read_state(path)
        except ValueError as error:
            raise AssertionError(f"{path} is torn: {error}") from error
    found = checkpoints(run_folder)
    if found:
        load_checkpoint(found[max(found)])


def differences(wanted: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return [name for name in sorted(wanted.keys() | got.keys()) if wanted.get(name) != got.get(name)]


def live(arguments: list[str], threads: int, log: str) -> None:
    """One life of a run: what `python -m fl_lightning` does, printing into a file."""
    import torch

    from fl_lightning.cli import main

    torch.set_num_threads(threads)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


def lives() -> Any:
    """Where processes come from: a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["fl_lightning.runs.fit", "fl_lightning.cli", "lightning.pytorch.loggers", "tensorboard"]
    )
    return context


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--share", default="all", choices=["all", "a"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="lightning_logs/benchmarks/chaos.json")
    args = parser.parse_args()
    from benchmarks.common import write_clients, write_json

    draw, context = random.Random(args.seed), lives()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        data = Path(folder) / "data"
        write_clients(data, args.clients, args.records)
        options = ["fit", "--data", str(data), "--clients-per-dept", str(args.clients // 4), "--learning-rate", "5e-3"]
        options += ["--rounds", str(args.rounds), "--federation.share", args.share, "--device-map", "cpu"]
        options += ["--fabric.devices", str(args.processes)]

        def run(output: str, resume: bool, seconds: float | None) -> int:
            """Exit code of one life; -9 where it was killed."""
            more = ["--resume", "last"] if resume else []
            argv = [*options, "--output", f"{folder}/{output}", *more]
            life = context.Process(target=live, args=(argv, args.threads, f"{folder}/log"))
            life.start()
            life.join(seconds)
            if life.is_alive():
                os.kill(life.pid, signal.SIGKILL)
                life.join()
            return life.exitcode

        run("warm", False, 1.0)
        started = time.perf_counter()
        assert run("straight", False, None) == 0
        straight = time.perf_counter() - started
        wanted = results(Path(folder) / "straight" / "version_0")
        loading = 1.0 if args.processes == 1 else 10.0  # further processes do their imports anew
        mean = straight / (1.5 * args.kills) + loading
        kills = resumed = 0
        code, killed = -9, Path(folder) / "killed" / "version_0"
        while code != 0:
            seconds = draw.uniform(0.0, 2 * mean) if kills < args.kills else None
            again = (killed / "config.yaml").is_file()
            code = run("killed", again, seconds)
            if code == -9:
                kills += 1
                check_whole(killed)
            elif code != 0:
                raise SystemExit(f"exit code {code} after {kills} kills:\n{(Path(folder) / 'log').read_text()[-3000:]}")
            resumed += again
        differ = differences(wanted, results(killed))
        left = [p.name for p in killed.rglob(".*") if p.name != ".lock"]
        facts = {"kills": kills, "resumed": resumed, "seconds undisturbed": round(straight, 1), "differ": differ}
        facts |= {"rounds": args.rounds, "processes": args.processes, "share": args.share, "left behind": left}
        print(*(f"{key}: {value}" for key, value in facts.items()), sep="\n")
        write_json(args.json, facts)
    if differ or left or kills < args.kills:
        raise SystemExit("not survived" if differ or left else f"only {kills} kills: give it more --rounds")


if __name__ == "__main__":
    main()
