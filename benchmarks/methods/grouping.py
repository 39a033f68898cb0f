"""Which grouping finds the truth: adjusted Rand index on the bundled departments, and what it says of one pool.

    python -m benchmarks.methods.grouping [--rounds 5] [--seeds 3] [--records 32] [--null 100]
    python -m benchmarks.methods.grouping --data ROOT [--truth structure.json] --null 0

Recovery: departments train without being mixed, at the momentum of the default; after every round each representation,
method and rule groups the very same states. Null: all records of all departments are shuffled and dealt to four
departments of three clients, one round is trained, and the rule `dynamic` should answer one cluster.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score

from benchmarks.common import markdown, number, write_json
from fl_lightning import (
    FederatedDataModule,
    FederatedTrainer,
    FederationConfig,
    LoraClientModule,
    ModelConfig,
    TrainingConfig,
    create_lora_model,
    load_base_model,
)
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.clustering.rounds import ClusteringInputs, cluster_round
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.layout import true_clusters
from fl_lightning.evaluation.cross_loss import cross_losses
from fl_lightning.storage.files import read_json
from fl_lightning.training.clients import make_clients

REPRESENTATIONS = ("raw", "delta", "subspace", "subspace_residual", "product", "cross_loss")
METHODS = ("kmeans", "agglomerative", "spectral")
RULES = ("elbow", "silhouette", "eigengap", "dynamic")
WAYS = [w for w in itertools.product(REPRESENTATIONS, METHODS, RULES) if w[0] != "cross_loss" or w[2] != "dynamic"]
Scores = dict[str, list[list[float]]]
"""{representation, method and rule: ARI of each seed after each round}."""


class Groupings(FederatedCallback):
    """Groups the departments of every round in every way; reads, and changes nothing."""

    def __init__(self, ways: list[tuple[str, str, str]], seed: int) -> None:
        self.ways, self.seed = ways, seed
        self.starts: dict[str, Any] = {}
        self.moves: dict[str, Any] = {}
        self.weights: dict[str, float] = {}
        self.found: dict[tuple[int, str, str, str], dict[str, int]] = {}
        self.memories: dict[tuple[str, str, str], dict[str, Any]] = {}

    def on_round_start(self, *, trainer: Any, tasks: Any) -> None:
        self.starts, self.moves = {task.client_id: task.start for task in tasks}, {}

    def on_client_end(self, *, trainer: Any, update: Any) -> None:
        start, initial = self.starts[update.client_id], trainer.federation.initial
        self.moves[update.client_id] = {n: initial[n] + t - start[n] for n, t in update.state.items()}
        self.weights[update.client_id] = float(update.num_examples)

    def on_round_end(self, *, trainer: Any) -> None:
        states, losses = trainer.federation.departments, None
        if any(way[0] == "cross_loss" for way in self.ways):
            losses = cross_losses(trainer.clients, trainer.data, states)
        inputs = ClusteringInputs(states, trainer.federation.initial, self.moves, self.weights, losses)
        for representation, method, rule in self.ways:
            config = DeptClustersConfig(representation=representation, method=method, select=rule)
            way = representation, method, rule
            memory = self.memories.get(way, {})
            grouping, self.memories[way] = cluster_round(config, inputs, previous={}, memory=memory, seed=self.seed)
            self.found[trainer.round_num, representation, method, rule] = grouping.assignments


def run(
    module: Any, data: Any, rounds: int, seed: int, ways: list[tuple[str, str, str]], clients: Any, momentum: float
) -> Groupings:
    """One federation, grouped after every round."""
    watch = Groupings(ways, seed)
    plain = FederationConfig(
        rounds=rounds,
        client_clusters=ClientClustersConfig(num_clusters=1),
        dept_clusters=DeptClustersConfig(enabled=False),
    )
    plain.flora.momentum = momentum
    trainer = FederatedTrainer(
        fabric=Fabric(accelerator="cpu", devices=1), callbacks=[watch], federation=plain, seed=seed,
        training=TrainingConfig(learning_rate=5e-3),
    )  # fmt: skip
    trainer.fit(module, data, clients=clients)
    return watch


def one_pool(data: dict[str, ClientData], seed: int, records: int) -> dict[str, ClientData]:
    """Four departments of three clients, dealt from all records."""
    pool = [example for client in data.values() for example in client.train]
    random.Random(seed).shuffle(pool)
    dealt = {}
    for index, (department, client) in enumerate(itertools.product("abcd", range(3))):
        own = pool[index * records : (index + 1) * records]
        dealt[f"{department}/client_{client}"] = ClientData(department, f"client_{client}", own, own[:1])
    return dealt


def prepare() -> tuple[Any, Any]:
    """(module around the tiny base, its tokenizer)."""
    base, tokenizer = load_base_model(ModelConfig(), dtype=torch.float32)
    return LoraClientModule(create_lora_model(base, seed=1), learning_rate=5e-3), tokenizer


def load(root: str | Path, tokenizer: Any, records: int, held_out: int) -> dict[str, ClientData]:
    """The first three clients of each department, with so many records each."""
    data = FederatedDataModule(root, tokenizer, clients_per_dept=3).federation()
    return {
        c: dataclasses.replace(d, train=list(d.train)[:records], eval=list(d.eval)[:held_out]) for c, d in data.items()
    }


def ways_without(skipped: list[str]) -> list[tuple[str, str, str]]:
    """Every way but those of some representations."""
    return [way for way in WAYS if way[0] not in skipped]


def recover(
    module: Any,
    data: dict[str, ClientData],
    rounds: int,
    seeds: list[int],
    ways: list[tuple[str, str, str]],
    momentum: float,
) -> list[Groupings]:
    """What every way finds, for each seed."""
    fabric = Fabric(accelerator="cpu", devices=1)
    clients = make_clients(fabric, module, data, TrainingConfig(learning_rate=5e-3))
    return [run(module, data, rounds, seed, ways, clients, momentum) for seed in seeds]


def score(watches: list[Groupings], truth: Mapping[str, int], rounds: int) -> Scores:
    """Adjusted Rand indices."""
    names, scores = sorted(truth), {}
    for way in watches[0].ways:
        found = [[watch.found[(r, *way)] for r in range(1, rounds + 1)] for watch in watches]
        labels = [truth[n] for n in names]
        scores[" ".join(way)] = [[adjusted_rand_score(labels, [f[n] for n in names]) for f in own] for own in found]
    return scores


def show(title: str, scores: Scores) -> None:
    """A row for each representation and rule, the best first; methods that gave the same share one."""
    table = Table(title=title, title_justify="left")
    for column in ("representation, method, rule", "mean ARI by round", "mean"):
        table.add_column(column)
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, own in scores.items():
        representation, method, rule = name.split()
        rows.setdefault((representation, rule, json.dumps(own)), []).append(method)
    means = {key: statistics.fmean(map(statistics.fmean, json.loads(key[2]))) for key in rows}
    for key in sorted(rows, key=lambda key: -means[key]):
        methods = "all" if len(rows[key]) == len(METHODS) else ", ".join(rows[key])
        by_round = [statistics.fmean(column) for column in zip(*json.loads(key[2]), strict=True)]
        shown = "  ".join(f"{value:5.2f}" for value in by_round)
        table.add_row(f"{key[0]} {methods} {key[1]}", shown, f"{means[key]:.2f}")
    Console(width=140).print(table)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="bundled:departments")
    parser.add_argument("--truth", help="a structure.json; default: that of the data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--eval", type=int, default=32)
    parser.add_argument("--skip", nargs="*", default=[], choices=REPRESENTATIONS, help="cross_loss takes half the time")
    parser.add_argument("--momentum", type=float, default=0.1)
    parser.add_argument("--null", type=int, default=100)
    parser.add_argument("--null-rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="lightning_logs/benchmarks/grouping.json", help="kept there, and reused")
    return parser.parse_args(argv)


def recovery(args: argparse.Namespace) -> Scores:
    """The indices: those that are kept if they are of the same arguments, otherwise measured and kept."""
    same = ("data", "truth", "rounds", "seeds", "records", "eval", "skip", "momentum")
    if Path(args.json).is_file():
        kept = read_json(Path(args.json))
        if all(kept["arguments"].get(name) == getattr(args, name) for name in same):
            scores: Scores = kept["ari"]
            return scores
    truth = true_clusters(Path(args.truth).parent if args.truth else args.data)
    if truth is None:
        sys.exit(f"{args.truth or args.data}: no true_department_clusters in structure.json; wanted them")
    torch.set_num_threads(args.threads)
    module, tokenizer = prepare()
    data = load(args.data, tokenizer, args.records, args.eval)
    watches = recover(module, data, args.rounds, list(range(args.seeds)), ways_without(args.skip), args.momentum)
    scores = score(watches, truth, args.rounds)
    write_json(args.json, {"arguments": vars(args), "ari": scores})
    return scores


def table(scores: Scores) -> str:
    """Index after round 1 and mean over the later ones; the lowest and the highest where the methods differ."""

    def spread(values: list[float]) -> str:
        low, high = number(min(values), 2), number(max(values), 2)
        return low if low == high else f"{low} to {high}"

    rows = []
    for representation in dict.fromkeys(way.split()[0] for way in scores):
        cells = []
        for rule in RULES:
            own = [scores[f"{representation} {m} {rule}"] for m in METHODS if f"{representation} {m} {rule}" in scores]
            first = spread([statistics.fmean(seed[0] for seed in seeds) for seeds in own]) if own else "–"
            later = spread([statistics.fmean(statistics.fmean(s[1:]) for s in seeds) for seeds in own]) if own else "–"
            cells.append(f"{first}; {later}")
        rows.append([representation, *cells])
    return markdown(("representation", *RULES), rows)


def main() -> None:
    """Both parts, then their tables."""
    args = arguments()
    scores = recovery(args)
    show(f"{args.data}, {args.records} records a client, {args.seeds} seeds, {args.rounds} rounds", scores)
    if args.null:
        module, tokenizer = prepare()
        ones = null(module, load(args.data, tokenizer, args.records, args.eval), args)
        write_json(args.json, {"arguments": vars(args), "ari": scores, "null": ones})
        for name, counts in ones.items():
            Console().print(f"one pool, {name}: one cluster in {counts.count(1)} of {len(counts)}")


def null(module: Any, data: dict[str, ClientData], args: argparse.Namespace) -> dict[str, list[int]]:
    """{representation, method and round: number of clusters that `dynamic` found in each draw of one pool}."""
    ways = [(r, m, "dynamic") for r, m in itertools.product(("delta", "product", "subspace_residual"), METHODS[:2])]
    fabric, ones = Fabric(accelerator="cpu", devices=1), {}
    for draw in range(args.null):
        dealt = one_pool(data, draw, 16)
        pool = make_clients(fabric, module, dealt, TrainingConfig(learning_rate=5e-3))
        watch = run(module, dealt, args.null_rounds, draw, ways, pool, args.momentum)
        for way, r in itertools.product(ways, range(1, args.null_rounds + 1)):
            n = len(set(watch.found[(r, *way)].values()))
            ones.setdefault(f"{way[0]} {way[1]} round {r}", []).append(n)
    return ones


if __name__ == "__main__":
    main()
