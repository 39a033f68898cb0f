"""One run, killed again and again at random moments and resumed each time, against one that was left alone.

    python -m benchmarks.systems.chaos [--kills 50] [--rounds 40] [--processes 1]
    python -m benchmarks.systems.chaos --kills 10 --rounds 200 --clients 100000 --asked 8 --loading 20 [--share a]

Every life of the run is a process of its own that gets SIGKILL a random number of rounds and a random time after its
start: while it loads, trains, evaluates, writes or resumes; every second life gets it a little later, while a
checkpoint is half written. After each kill whatever has a name must be whole: JSON files parse, safetensors files open,
the newest checkpoint matches its manifest. At the end the chain of rounds must hold, every file must have the SHA-256
it has in the undisturbed run, and every logged figure but memory the same value, once. Processes are forked from one
that has done the imports, or fifty lives would be mostly imports.

With `--asked` few of the clients are asked in a round, whose records are in one JSONL file, and departments are
evaluated every 50 rounds on a sample of eight clients; it prints as well whether rounds become slower, and how large a
checkpoint and the process have become.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.systems.equal_runs import check_whole, differences, results


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


def growth(run_folder: Path) -> dict[str, float]:
    """Seconds of rounds near the start and at the end (medians, without those that evaluate), MiB, and files."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("seconds/fit") and not row.get("eval/loss")]
    count = len(rows) // 4
    figures: dict[str, float] = {}
    for part in ("fit", "aggregate", "write"):
        for where, some in (("first", rows[1 : count + 1]), ("last", rows[-count:])):
            figures[f"seconds/{part} {where}"] = statistics.median(float(row[f"seconds/{part}"]) for row in some)
    from fl_lightning.federation.checkpoint import checkpoints

    found = checkpoints(run_folder)
    files = [path for path in found[max(found)].rglob("*") if path.is_file()]
    rss = [float(row[key]) for row in rows for key in row if key.startswith("memory/") and row[key]]
    return {
        **figures,
        "checkpoint MiB": sum(path.stat().st_size for path in files) / 2**20,
        "checkpoint files": len(files),
        "memory first": rss[0] if rss else 0.0,
        "memory last": rss[-1] if rss else 0.0,
    }


def newest_round(run_folder: Path) -> int:
    """The round of the newest checkpoint; 0 if there is none."""
    from fl_lightning.federation.checkpoint import checkpoints

    return max(checkpoints(run_folder), default=0)


def wait_for_writing(run_folder: Path, life: Any, seconds: float = 60.0) -> None:
    """Return while the next checkpoint has some of its files, or when the life or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and life.is_alive():
        if any(any(folder.iterdir()) for folder in (run_folder / "checkpoints").glob(".round_*")):
            return
        time.sleep(0.0005)


@dataclass(frozen=True)
class Lives:
    """Starts processes that live a run's life, and kills them.

    Attributes:
        context: where processes come from.
        folder: of the runs' outputs and of the log.
        options: of `fit`.
        threads: of each process.
    """

    context: Any
    folder: Path
    options: list[str]
    threads: int

    def run_folder(self, output: str) -> Path:
        """The folder of a run."""
        return self.folder / output / "version_0"

    def live(self, output: str, rounds: int | None = None, delay: float = 0.0, *, while_writing: bool = False) -> int:
        """One life: the exit code, or -9 where it was killed, so many rounds and seconds after its start."""
        place = self.run_folder(output)
        more = ["--resume", "last"] if (place / "config.yaml").is_file() else []
        argv = [*self.options, "--output", str(self.folder / output), *more]
        life = self.context.Process(target=live, args=(argv, self.threads, str(self.folder / "log")))
        last = newest_round(place) + (rounds or 0)
        life.start()
        while rounds and life.is_alive() and newest_round(place) < last:
            life.join(0.01)
        life.join(None if rounds is None else delay)
        if while_writing:
            wait_for_writing(place, life)
        if life.is_alive():
            os.kill(life.pid, signal.SIGKILL)
            life.join()
        code: int = life.exitcode
        return code

    def kill_and_resume(self, output: str, kills: int, rounds: int, loading: float, one_round: float, seed: int) -> int:
        """Live until the run is finished, with at most `kills` kills; returns how many there were."""
        draw, killed = random.Random(seed), 0
        while True:
            if killed < kills:
                whole, part = divmod(draw.uniform(0.0, 2 * rounds / (1.5 * kills)), 1)
                delay = part * one_round + (0.0 if whole else draw.uniform(0.0, loading))
                code = self.live(output, int(whole), delay, while_writing=killed % 2 == 1)
            else:
                code = self.live(output)
            if code == 0:
                return killed
            if code != -9:
                log = (self.folder / "log").read_text()[-3000:]
                raise SystemExit(f"exit code {code} after {killed} kills:\n{log}")
            killed += 1
            check_whole(self.run_folder(output))


def options_of(args: argparse.Namespace, folder: Path) -> list[str]:
    """Options of `fit`, whose records are made first."""
    from benchmarks.common import write_clients
    from benchmarks.systems.cross_device import write_file

    options = ["fit", "--learning-rate", "5e-3", "--rounds", str(args.rounds), "--federation.share", args.share]
    options += ["--device-map", "cpu", "--fabric.devices", str(args.processes)]
    if not args.asked:
        write_clients(folder / "data", args.clients, args.records)
        return [*options, "--data", str(folder / "data"), "--clients-per-dept", str(args.clients // 4)]
    data = write_file(folder / "data", args.clients)
    options += ["--data", str(data), "--clients-per-dept", "all", "--logging.samples=0"]
    options += [f"--federation.clients_per_round={args.asked // 4}"]
    return [*options, "--evaluation.every=50", "--evaluation.clients_per_dept=8"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--asked", type=int, default=0, help="in a round, of many clients; 0 asks all")
    parser.add_argument("--loading", type=float, default=1.0, help="seconds before the first round")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--share", default="all", choices=["all", "a"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="lightning_logs/benchmarks/chaos.json")
    return parser.parse_args()


def main() -> None:
    """Kill, resume, compare."""
    from benchmarks.common import write_json

    args = arguments()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        if args.asked:
            os.environ["XDG_CACHE_HOME"] = name
        lived = Lives(lives(), folder, options_of(args, folder), args.threads)
        lived.live("warm", 0, 1.0)
        started = time.perf_counter()
        assert lived.live("straight") == 0
        seconds = time.perf_counter() - started
        loading = args.loading + (0.0 if args.processes == 1 else 9.0)  # further processes do their imports anew
        one_round = max(seconds - loading, 0.0) / args.rounds
        kills = lived.kill_and_resume("killed", args.kills, args.rounds, loading, one_round, args.seed)
        straight, killed = map(lived.run_folder, ("straight", "killed"))
        wanted = results(straight)
        differ = differences(wanted, results(killed))
        left = [path.name for path in killed.rglob(".*") if path.name != ".lock"]
        facts = {"kills": kills, "seconds undisturbed": round(seconds, 1), "differ": differ, "left behind": left}
        facts |= {key: getattr(args, key) for key in ("rounds", "processes", "share", "clients")}
        facts |= {"compared": len(wanted), **(growth(straight) if args.asked else {})}
        print(*(f"{key}: {value}" for key, value in facts.items()), sep="\n")
        write_json(args.json, facts)
    if differ or left or kills < args.kills:
        raise SystemExit("not survived" if differ or left else f"only {kills} kills: give it more --rounds")


if __name__ == "__main__":
    main()
