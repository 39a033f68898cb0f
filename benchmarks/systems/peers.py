"""A whole federated round: this package against a Hugging Face Trainer per client and against Flower's simulation.

    python -m benchmarks.systems.peers [--flower-venv PATH] [--records 32] [--threads 2] [--repeats 3]

The Trainer per client needs the `bench` extra. Flower wants its own virtual environment, since its ranges differ:

    python -m venv PATH
    PATH/bin/pip install 'flwr[simulation]>=1.41,<1.43' torch transformers peft accelerate

with the versions of torch, transformers and peft that are installed here; others are refused. Without --flower-venv
Flower is left out.

Everybody trains the same tokenised records in the same batches from the same adapter, one epoch a client, with the same
rate, clipping and number of threads, and nobody evaluates:
- ours: `FederatedTrainer` with clients_at_once auto; clusters off, so that it does no more than the others: the
  weighted mean of each department.
- Trainer per client: what OpenFedLLM and Shepherd do, one after another on one model, means by department.
- Flower: what its FlowerTune LLM template does, which loads the base in every call of a client; FedAvg over all clients
  on Ray, started by `run_simulation`, which is leaner than `flwr run`. It gets the better of two settings: one client
  at a time with all threads, or as many clients as threads with one thread each.

Two figures each: a warm round (imports done, models loaded, Ray's workers up), and the whole process for one round,
whose JSON has `.start` in its name. The contestants alternate, but on a machine that others use too the threads of all
of them wait for each other, some tenfold: look at the load average that is printed, at the spread of the seconds in the
JSON, or take --threads 1. The mean training losses must agree, else the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lightning.fabric import Fabric
from transformers.utils import logging

from benchmarks.common import report
from benchmarks.systems.peers_flower import load_model, load_records, trainer_round
from fl_lightning import (
    FederatedCallback,
    FederatedTrainer,
    FederationConfig,
    LoraClientModule,
    ModelConfig,
    TrainingConfig,
    bundled,
    create_lora_model,
    load_base_model,
)
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig, FloraConfig
from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.data.packing import epoch_order
from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.lora import collect_lora_state, load_lora_state
from fl_lightning.seeding import derive_seed
from fl_lightning.training.local_clients import LocalClients

HERE = Path(__file__).parent
SEED = 1234
LOSS_TOLERANCE = 0.02  # dropout is drawn differently; with --dropout 0 the losses agree to five decimals
OURS, TRAINER, FLOWER = "ours", "Trainer per client", "Flower simulation"
WARM, WHOLE = "a warm round", "a process of one round"


class Losses(FederatedCallback):
    """Example-weighted mean over clients of the mean loss of their steps."""

    def __init__(self) -> None:
        self.sum, self.examples = 0.0, 0

    def on_client_end(self, *, trainer: FederatedTrainer, update: Any) -> None:
        self.sum += update.num_examples * statistics.fmean(update.losses)
        self.examples += update.num_examples


class Ours:
    """This package with a loaded model and read records."""

    def __init__(self, work: Path, plan: dict[str, Any]) -> None:
        base, _ = load_base_model(ModelConfig(name_or_path=plan["base"]), dtype=torch.float32)
        model = create_lora_model(base, **plan["lora"])
        load_lora_state(model, torch.load(work / "start.pt", weights_only=True))
        self.data = {}
        for k, client_id in enumerate(plan["client_ids"]):
            examples = [Example(*e) for e in torch.load(work / f"{k}.pt", weights_only=True)]
            self.data[client_id] = ClientData(*client_id.split("/"), examples, [])
        self.fabric = Fabric(accelerator="cpu", devices=1)
        self.module = LoraClientModule(model, learning_rate=plan["rate"])
        self.training = TrainingConfig(learning_rate=plan["rate"], batch_size=plan["batch_size"])
        self.clients = LocalClients(self.fabric, self.module, self.data, self.training, "auto")
        self.federation = FederationConfig(
            rounds=1,
            flora=FloraConfig(momentum=1.0),
            client_clusters=ClientClustersConfig(num_clusters=1),
            dept_clusters=DeptClustersConfig(enabled=False),
        )

    def round(self) -> tuple[dict[str, Any], float]:
        """The departments' states after a round from the start, and the mean loss."""
        losses = Losses()
        trainer = FederatedTrainer(
            fabric=self.fabric, callbacks=[losses], federation=self.federation, training=self.training, seed=SEED
        )
        state = trainer.fit(self.module, self.data, clients=self.clients)
        return dict(state.departments), losses.sum / losses.examples


def prepare(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What everybody gets: the plan, the start state and each client's records as (ids, supervised)."""
    base, tokenizer = load_base_model(ModelConfig(name_or_path=args.model), dtype=torch.float32)
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": args.dropout, "target_modules": ["q_proj", "v_proj"]}
    torch.save(collect_lora_state(create_lora_model(base, **lora, seed=1)), work / "start.pt")
    data = load_clients("bundled:departments", tokenizer, clients_per_dept=3, max_records=args.records, max_length=512)
    orders = []
    for k, (client_id, client) in enumerate(data.items()):
        torch.save([(e.ids, e.supervised) for e in client.train], work / f"{k}.pt")
        batches = epoch_order(len(client.train), args.batch_size, derive_seed(SEED, "order", 1, client_id, 0))
        orders.append([i for batch in batches for i in batch])
    plan = {
        "base": str(bundled.resolve(args.model)),
        "lora": lora,
        "rate": 5e-3,
        "batch_size": args.batch_size,
        "seed": SEED,
        "threads": args.threads,
        "pad": tokenizer.pad_token_id,
        "client_ids": list(data),
        "departments": [client.department for client in data.values()],
        "orders": orders,
        "scratch": str(work / "scratch"),
        "real tokens": sum(len(e) for client in data.values() for e in client.train),
    }
    (work / "plan.json").write_text(json.dumps(plan))
    return plan


def process(python: Path | str, script: str, work: Path, *arguments: object) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole process, and what it wrote into `result.json`."""
    result = work / "result.json"
    result.unlink(missing_ok=True)
    environment = os.environ | {
        "FLWR_HOME": str(work / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_OFFLINE": "1",
    }
    started = time.perf_counter()
    command = [str(python), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode or not result.is_file():
        raise RuntimeError(
            f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return seconds, json.loads(result.read_text())


def flower(python: Path, work: Path, at_once: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of the whole process, seconds of a round after the first (the mean of them), the first round's loss."""
    arguments = ("flower", work, "--rounds", rounds, "--clients-at-once", at_once)
    seconds, result = process(python, "peers_flower.py", work, *arguments)
    ends = result["ends"]
    return seconds, (ends[-1] - ends[1]) / max(1, rounds - 1), result["loss"]


def timed(run: Callable[[], tuple[Any, float]]) -> tuple[float, float]:
    """Seconds and loss of a round in this process."""
    started = time.perf_counter()
    _, loss = run()
    return time.perf_counter() - started, loss


def same_versions(python: Path) -> None:
    """Refuse a Flower environment in which another torch would do the work."""
    names = ("torch", "transformers", "peft", "accelerate")
    code = f"from importlib.metadata import version; print(*map(version, {names}))"
    got = subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.split()
    if got != [version(name) for name in names]:
        raise SystemExit(f"--flower-venv: {names} are {got} there, wanted {[version(n) for n in names]} as here")


def contestants(
    work: Path, plan: dict[str, Any], flower_venv: Path | None, facts: dict[str, Any]
) -> dict[str, dict[str, Callable[[], tuple[float, float]]]]:
    """{kind of figure: {contestant: seconds and loss of one turn}}, everybody warmed up."""
    ours, model = Ours(work, plan), load_model(plan)
    records = [load_records(work, k, plan) for k in range(len(plan["departments"]))]
    starts = dict.fromkeys(plan["departments"], torch.load(work / "start.pt", weights_only=True))

    def whole(script: str, *arguments: object) -> tuple[float, float]:
        seconds, result = process(sys.executable, script, work, *arguments)
        return seconds, result["loss"]

    turns: dict[str, dict[str, Callable[[], tuple[float, float]]]] = {
        WARM: {
            OURS: lambda: timed(ours.round),
            TRAINER: lambda: timed(lambda: trainer_round(model, starts, records, plan)),
        },
        WHOLE: {
            OURS: lambda: whole("peers.py", "--once", work),
            TRAINER: lambda: whole("peers_flower.py", "trainer", work),
        },
    }
    for turn in turns[WARM].values():
        turn()
    if flower_venv is not None:
        python = flower_venv.absolute() / "bin" / "python"
        same_versions(python)
        tries = {k: flower(python, work, k, 3) for k in sorted({1, plan["threads"]})}
        by_round = min(tries, key=lambda k: tries[k][1])
        by_start = min(tries, key=lambda k: tries[k][0] - 2 * tries[k][1])  # without its second and third round
        facts["Flower, seconds a warm round by clients at once"] = {k: round(t[1], 3) for k, t in tries.items()}
        facts["Flower, clients at once"] = {WARM: by_round, WHOLE: by_start}
        turns[WARM][FLOWER] = lambda: flower(python, work, by_round, 3)[1:]
        turns[WHOLE][FLOWER] = lambda: flower(python, work, by_start, 1)[::2]
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flower-venv", type=Path, help="virtual environment with flwr[simulation]")
    parser.add_argument("--model", default="bundled:tiny_base", help="a local folder, or what the package bundles")
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="lightning_logs/benchmarks/peers.json")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)  # one round of ours in a process of its own
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.once:
        plan = json.loads((args.once / "plan.json").read_text())
        torch.set_num_threads(plan["threads"])
        _, loss = Ours(args.once, plan).round()
        (args.once / "result.json").write_text(json.dumps({"loss": loss}))
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        plan = prepare(Path(folder), args)
        facts = {name: plan[name] for name in ("threads", "batch_size", "real tokens")}
        facts["load average before the start"] = round(os.getloadavg()[0], 2)
        turns = contestants(Path(folder), plan, args.flower_venv, facts)
        seconds = {kind: {name: [] for name in own} for kind, own in turns.items()}
        losses = {}
        for _ in range(args.repeats):
            for kind, own in turns.items():
                for name, turn in own.items():
                    took, losses[f"{name}, {kind}"] = turn()
                    seconds[kind][name].append(took)
    for kind, path in ((WARM, Path(args.json)), (WHOLE, Path(args.json).with_suffix(".start.json"))):
        own = {key: round(value, 5) for key, value in losses.items() if key.endswith(kind)}
        title = f"{kind}, {args.model}, {args.records} records a client"
        report(title, seconds[kind], TRAINER, facts | {"mean training losses": own}, str(path))
    if max(losses.values()) > (1 + LOSS_TOLERANCE) * min(losses.values()):
        raise SystemExit(f"mean training losses differ by more than {LOSS_TOLERANCE:.0%}: {losses}")


if __name__ == "__main__":
    main()
