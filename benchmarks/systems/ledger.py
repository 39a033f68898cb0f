"""What the chain of rounds costs: processor seconds of its digests and lines, and bytes for each client and round.

    python -m benchmarks.systems.ledger [--rounds 3] [--arguments --max-records 16]

Every call of the ledger is timed by the processor time of its thread, and compared with that of all threads of the run:
this does not depend on what else the machine does, as a comparison of two runs would. Seconds on the clock, which wait
for the disk too, are beside it; most of them are in the thread that writes, which the rounds do not wait for.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console

from benchmarks.common import write_json
from fl_lightning.callbacks import RunLedger
from fl_lightning.config.parsing import parse_config
from fl_lightning.provenance.chain import LedgerFile, read_chain
from fl_lightning.runs.fit import fit
from fl_lightning.storage.run_layout import LEDGER
from fl_lightning.trainer import FederatedTrainer

ROUND = (
    (RunLedger, "on_client_end"),
    (RunLedger, "on_own_fit_end"),
    (RunLedger, "on_aggregate"),
    (LedgerFile, "append"),
)
"""What is called in every round; the first and the last line are written once."""
ONCE = ((RunLedger, "on_federation_start"), (RunLedger, "_end"))


def main() -> None:
    """Run once and report the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/ledger.json")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="further arguments of fit, last")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spent: dict[str, list[float]] = {"rounds": [0.0, 0.0], "once": [0.0, 0.0]}
    for kind, calls in (("rounds", ROUND), ("once", ONCE)):
        for owner, name in calls:
            setattr(owner, name, _timed(getattr(owner, name), spent[kind]))
    run = [0.0, 0.0]
    FederatedTrainer._run_round = _timed(FederatedTrainer._run_round, run, time.process_time)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--rounds", str(args.rounds), "--device-map", "cpu", "--output", folder, *args.arguments]
        run_folder = fit(parse_config(options), console=Console(stderr=True))
        assert run_folder is not None
        size, chain = (run_folder / LEDGER).stat().st_size, read_chain(run_folder)
    fits = sum(len(line["clients"]) for line in chain.rounds.values())
    facts = {
        "rounds": args.rounds,
        "clients in all rounds": fits,
        "seconds of a round, processor": run[0] / args.rounds,
        "seconds of a round, clock": run[1] / args.rounds,
        "ledger in a round, processor": spent["rounds"][0] / args.rounds,
        "ledger in a round, clock": spent["rounds"][1] / args.rounds,
        "share of a round, processor": spent["rounds"][0] / run[0],
        "share of a round, clock": spent["rounds"][1] / run[1],
        "first and last line, clock": spent["once"][1],
        "bytes for each client and round": size / fits,
    }
    for name, value in facts.items():
        Console().print(f"{name}: {value:.4g}")
    write_json(args.json, facts)


def _timed(call: Callable[..., Any], spent: list[float], processor: Callable[[], float] = time.thread_time) -> Any:
    """The call, which adds processor seconds and seconds on the clock to two sums."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        before = processor(), time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[0] += processor() - before[0]
            spent[1] += time.perf_counter() - before[1]

    return timed


if __name__ == "__main__":
    main()
