"""What forgetting costs: seconds of `forget` against those of fitting anew, and whether both have the same bytes.

    python -m benchmarks.systems.forgetting [--rounds 6] [--records 32] [--updates]

Four cases on the bundled base and departments, all from one run in which a round samples clients: a client that took
part in round 1, one that took part as late as any, a department, and three records. Each is fitted anew with
``data.exclude``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console

from fl_lightning import bundled
from fl_lightning.config.parsing import parse_config
from fl_lightning.provenance.run_files import describe_files
from fl_lightning.runs.build import load_run_config
from fl_lightning.runs.fit import fit
from fl_lightning.runs.forgetting.forget import forget
from fl_lightning.runs.forgetting.plan import asked
from fl_lightning.runs.forgetting.request import ForgetRequest, look_up
from fl_lightning.storage.files import write_json

QUIET = Console(quiet=True)


def main() -> None:
    """Fit once, then forget and fit anew in every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--clients", default="4", help="of each department")
    parser.add_argument("--per-round", default="2", help="clients of each department in a round")
    parser.add_argument("--updates", action="store_true", help="with an archive of updates, departments not mixed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/forgetting.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = ["--rounds", str(args.rounds), "--max-records", str(args.records), "--clients-per-dept", args.clients]
    options += ["--federation.clients_per_round", args.per_round, "--device-map", "cpu", "--logging.samples", "0"]
    if args.updates:
        options += ["--retention.updates", "true", "--no-dept-clustering", "--training.clients_at_once", "1"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fit(parse_config([*options, "--output", str(root / "warm"), "--rounds", "1"]), console=QUIET)
        before = fit(parse_config([*options, "--output", str(root / "before")]), console=QUIET)
        assert before is not None
        results = [_measure(root, before, case, options) for case in _cases(before, root)]
    print(f"{'taken out':<24}{'starts after':>14}{'forget':>10}{'anew':>10}{'equal':>8}")
    for row in results:
        print(
            f"{row['case']:<24}{'round ' + str(row['start_round']):>14}{row['forget']:>8.1f} s{row['anew']:>8.1f} s"
            f"{'yes' if row['equal'] else 'NO':>8}"
        )
    Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(args.json), {"options": options, "results": results})
    if not all(row["equal"] for row in results):
        raise SystemExit("a run is not the one that never had them")


def _cases(before: Path, root: Path) -> list[tuple[str, ForgetRequest, list[str]]]:
    """(name, request, options of the run that never had them)."""
    config = load_run_config(before)
    removal = look_up(config, ForgetRequest.of(clients=["hr/client_0"]))
    first: dict[str, int] = {}
    for number in range(config.federation.rounds, 0, -1):
        first |= dict.fromkeys(asked(config, removal.places, removal.before, number), number)
    early = min(first, key=lambda client_id: (first[client_id], client_id))
    late = max(first, key=lambda client_id: (first[client_id], client_id))
    path = root / "records.jsonl"
    file = next(bundled.resolve("bundled:departments").glob("engineering*/client_1/train.jsonl"))
    path.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    clients = [(f"{c}, in round {first[c]}", c) for c in (early, late)]
    return [
        *((name, ForgetRequest.of(clients=[c]), ["--data.exclude", json.dumps([c])]) for name, c in clients),
        ("department hr", ForgetRequest.of(departments=["hr"]), ["--data.exclude", "[hr]"]),
        ("three records", ForgetRequest.of(records=path), ["--data.exclude_records", str(path)]),
    ]


def _measure(root: Path, before: Path, case: tuple[str, ForgetRequest, list[str]], options: list[str]) -> dict:
    """Seconds of both ways, and whether adapters, states and evaluations are the same."""
    name, request, exclude = case
    folder = root / name.replace("/", "_").replace(" ", "_")
    copy = shutil.copytree(before, folder / "runs" / "version_0")
    started = time.perf_counter()
    result = forget(copy, request, console=QUIET)
    forgotten = time.perf_counter()
    never = fit(parse_config([*options, *exclude, "--output", str(folder / "never")]), console=QUIET)
    ended = time.perf_counter()
    assert result is not None
    assert never is not None
    both = [describe_files(path) for path in (result.run_folder, never)]
    for side in both:
        del side["files"]["config.yaml"]  # it has the output folder
    return {
        "case": name,
        "start_round": result.plan.start_round,
        "forget": forgotten - started,
        "anew": ended - forgotten,
        "equal": both[0] == both[1],
    }


if __name__ == "__main__":
    main()
