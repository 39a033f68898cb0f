"""Two runs at once on the same cores against one alone: how threads wait decides whether they get on.

    python -m benchmarks.systems.two_runs [--settings KMP_BLOCKTIME=200 ours OMP_WAIT_POLICY=PASSIVE]
        [--rounds 2] [--records 32] [--repeats 5] [--max-load 0.3]

A round is a fit of every client from the same start, in a process that has done one before. ``KMP_BLOCKTIME=200``
stands for no setting: it is the default of Intel's and LLVM's library, libgomp does not read it, and the package leaves
a user's choice alone. ``ours`` is what the package sets. Settings take turns; a turn begins when fewer than
``--max-load`` cores are busy, and is repeated if other programs used more than that meanwhile. Printed: the median
seconds of a round alone, of two at once (the later of the two), and the ratio of the latter to two rounds one after
another: 1 is as good as taking turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import write_json
from fl_lightning import openmp

DEFAULT = "KMP_BLOCKTIME=200"


def work(records: int, rounds: int) -> None:
    """In a child: load, warm up, say so, and time `rounds` as soon as a line comes in."""
    openmp.spin_while_alone()  # as `fit` does
    import torch
    from lightning.fabric import Fabric

    from fl_lightning import LoraClientModule, ModelConfig, TrainingConfig, create_lora_model, load_base_model
    from fl_lightning.data.client_data import load_clients
    from fl_lightning.federation.protocol import ClientTask
    from fl_lightning.modeling.lora import collect_lora_state
    from fl_lightning.training.local_clients import LocalClients

    base, tokenizer = load_base_model(ModelConfig(), dtype=torch.float32)
    module = LoraClientModule(create_lora_model(base, seed=1), learning_rate=5e-3)
    start = collect_lora_state(module.model)
    data = load_clients("bundled:departments", tokenizer, clients_per_dept=3, max_records=records, max_length=512)
    fabric, training = Fabric(accelerator="cpu", devices=1), TrainingConfig(learning_rate=5e-3)
    clients = LocalClients(fabric, module, data, training, clients_at_once="auto")
    tasks = [ClientTask(client_id, 1, start, 1234) for client_id in data]
    list(clients.fit(tasks))
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(rounds):
            list(clients.fit(tasks))
        print((time.perf_counter() - started) / rounds, flush=True)


class Runs:
    """Two processes of one setting."""

    def __init__(self, setting: str, options: list[str]) -> None:
        hidden = (*openmp.VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        env |= dict(pair.split("=", 1) for pair in setting.split(",") if pair != "ours")
        command = [sys.executable, "-m", "benchmarks.systems.two_runs", "--work", *options]
        self.children = []
        for _ in range(2):  # one after the other, so that they do not keep each other from starting
            child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.children.append(child)
            if child.stdout.readline().strip() != "ready":
                raise RuntimeError(f"{setting}: the process ended before its first round")

    def seconds(self, at_once: int) -> tuple[float, float]:
        """(seconds of a round in the slower of the processes, cores that other programs kept busy meanwhile)."""
        children = self.children[:at_once]
        busy, own, started = busy_seconds(), self._own_seconds(), time.perf_counter()
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        seconds = max(float(child.stdout.readline()) for child in children)
        others = busy_seconds() - busy - (self._own_seconds() - own)
        return seconds, max(0.0, others / (time.perf_counter() - started))

    def _own_seconds(self) -> float:
        fields = [Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split() for child in self.children]
        return sum(int(values[11]) + int(values[12]) for values in fields) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        for child in self.children:
            child.stdin.close()
            child.wait()


def busy_seconds() -> float:
    """Seconds that all cores together have been busy since the machine started."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_for_calm(max_load: float, deadline: float) -> None:
    """Return as soon as fewer than `max_load` cores were busy for a second, or at the deadline."""
    while time.monotonic() < deadline:
        busy = busy_seconds()
        time.sleep(1.0)
        if busy_seconds() - busy < max_load:
            return


def calm_turn(pair: Runs, at_once: int, max_load: float, patience: float) -> tuple[float, float]:
    """`Runs.seconds` of a turn that other programs did not disturb, or of the last try after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        wait_for_calm(max_load, deadline)
        seconds, others = pair.seconds(at_once)
        if others < max_load or time.monotonic() > deadline:
            return seconds, others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=[DEFAULT, "ours"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-load", type=float, default=0.3)
    parser.add_argument("--patience", type=float, default=900.0, help="seconds to wait for a calm turn")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", default="lightning_logs/benchmarks/two_runs.json")
    args = parser.parse_args()
    if args.work:
        work(args.records, args.rounds)
        return
    options = ["--rounds", str(args.rounds), "--records", str(args.records)]
    runs = {setting: Runs(setting, options) for setting in args.settings}
    seconds = {(setting, at_once): [] for setting in runs for at_once in (1, 2)}
    others: list[float] = []
    try:
        for turn in range(args.repeats):
            for setting, pair in runs.items():
                for at_once in (1, 2):
                    taken, load = calm_turn(pair, at_once, args.max_load, args.patience)
                    seconds[setting, at_once].append(taken)
                    others.append(load)
                    print(f"{turn} {setting} {at_once}: {taken:.2f} s, others {load:.2f} cores", file=sys.stderr)
    finally:
        for pair in runs.values():
            pair.close()
    table = Table(title=f"seconds of a round, {os.cpu_count()} cores", title_justify="left")
    for column in ("setting", "alone", "two at once", "two at once / (2 · alone)"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    rows = {}
    for setting in runs:
        alone, two = (statistics.median(seconds[setting, n]) for n in (1, 2))
        rows[setting] = {"alone": seconds[setting, 1], "two": seconds[setting, 2], "ratio": two / (2 * alone)}
        table.add_row(setting, f"{alone:.2f}", f"{two:.2f}", f"{two / (2 * alone):.2f}")
    Console().print(table)
    write_json(args.json, {"rows": rows, "cores": os.cpu_count(), "others": others})


if __name__ == "__main__":
    main()
