"""Runs of `benchmarks/methods/leaks.py`: clients whose updates are kept as the server receives them."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.methods.leak_attacks import Adapters, Attacker
from benchmarks.methods.leak_tables import DELTA
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.bundled import resolve
from fl_lightning.callbacks import FederatedRound
from fl_lightning.config import RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, CohortJournal, OnStep
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.network.site.local_dp import privatize
from fl_lightning.runs.build import build_components
from fl_lightning.runs.canaries import write_canaries
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState, num_bytes
from fl_lightning.trainer import FederatedTrainer
from fl_lightning.training.local_clients import LocalClients

CLIP = 3.0
"""Norm to which noise clips."""
MIXED = "{enabled: true, select: fixed, min_clusters: 1, max_clusters: 1, mixing_ratio: 0.3, mix: all}"


@dataclass(frozen=True)
class Way:
    """One way to send updates.

    Attributes:
        options: of the run.
        local_noise: noise multiplier of each site's own noise; None does not clip.
        noise: noise multiplier of the department's; None is without.
        apart: whether the clients are in the four departments whose records they have.
    """

    options: tuple[str, ...] = ()
    local_noise: float | None = None
    noise: float | None = None
    apart: bool = False


class Sites(LocalClients):
    """Clients whose updates are sent as sites send them, and are kept as the server receives them."""

    def begin(self, config: RunConfig, way: Way, seed: int) -> None:
        """Forget the run before."""
        self.config, self.way = config, way
        self.secret = hashlib.sha256(f"leaks/{seed}".encode()).hexdigest()
        self.received: dict[str, LoraState] = {}
        self.starts: dict[str, LoraState] = {}
        self.stats: dict[str, ClientStats] = {}
        self.bytes, self.sent, self.seconds = 0, 0, 0.0

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Updates, after the noise of the sites."""
        policy = share_policy(self.config.federation.share)
        for task, update in zip(tasks, super().fit(tasks, on_step, journal), strict=True):
            client, started = task.client_id, time.process_time()
            shared = policy.shared(update.state, task.round_num)
            start = {name: task.start[name] for name in shared}
            sent = dataclasses.replace(update, state=shared, metrics=None)
            if self.way.local_noise is not None:
                noise = self.way.local_noise
                sent = privatize(
                    sent, start, clip=CLIP, noise_multiplier=noise, secret=self.secret, run_id="leaks"
                ).update
            self.seconds += time.process_time() - started
            self.bytes += num_bytes(sent.state)
            self.sent += 1
            self.received[client] = {**update.state, **sent.state}
            self.starts[client] = dict(task.start)
            self.stats[client] = ClientStats(update.num_examples, update.num_tokens)
            yield dataclasses.replace(sent, state=self.received[client])


class TimedRound(FederatedRound):
    """Adds up the CPU seconds of the departments' steps."""

    seconds = 0.0

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """The step."""
        started = time.process_time()
        super().on_aggregate(trainer=trainer)
        self.seconds += time.process_time() - started


def write_clients(root: Path, seed: int, args: argparse.Namespace, *, apart: bool) -> None:
    """Clients whose records are dealt by chance into trained and held-out ones: parts of the bundled clients."""
    sources = sorted(Path(resolve("bundled:departments")).glob("*/client_*"), key=lambda p: (p.name, p.parent.name))
    parts = -(-args.clients // len(sources))
    for index in range(args.clients):
        source, part = sources[index % len(sources)], index // len(sources)
        lines = [line for split in ("train", "eval") for line in (source / f"{split}.jsonl").read_text().splitlines()]
        random.Random(f"{seed}/{source.parent.name}/{source.name}").shuffle(lines)
        own = lines[part::parts][: args.records + args.held_out]
        name = source.parent.name
        folder = root / name / f"client_{index}" if apart else root / "everybody" / f"{name}_{index}"
        folder.mkdir(parents=True)
        for split, some in (("train", own[: args.records]), ("eval", own[args.records :])):
            (folder / f"{split}.jsonl").write_text("\n".join(some) + "\n")


class Clients:
    """Clients of one seed, with their model, and runs of them.

    Args:
        folder: for their records; it has the canaries of the same clients, if they have been made.
        way: whose options say what the model and the departments are.
        seed: of records, canaries and runs.
        args: of the command line.
    """

    def __init__(self, folder: Path, way: Way, seed: int, args: argparse.Namespace) -> None:
        self.seed, self.args, self._root = seed, args, folder / ("apart" if way.apart else "together")
        if not self._root.exists():
            write_clients(self._root, seed, args, apart=way.apart)
        config, kept = self._config(way), self._root.with_suffix(".canaries")
        kept.mkdir(exist_ok=True)
        self.parts = build_components(config, kept)
        write_canaries(kept, self.parts.canaries)
        model, data = self.parts.module.model, self.parts.data
        self.sites = Sites(self.parts.fabric, self.parts.module, data, config.training, "auto")
        self.attacker = Attacker(self.sites, model, data, self.parts.canaries)
        self._initial, self._departments = collect_lora_state(model), clients_by_department(data)

    def _config(self, way: Way) -> RunConfig:
        args, mixed = self.args, MIXED if way.apart else "{enabled: false}"
        options = ["--data", str(self._root), "--seed", str(self.seed), "--model.name_or_path", args.base]
        options += ["--rounds", str(args.rounds), "--local-epochs", str(args.epochs), "--learning-rate", "5e-3"]
        options += ["--max-records", str(args.records), "--clients-per-dept", "all", "--device-map", "cpu"]
        options += ["--federation.combiner=fedavg", "--federation.weighting=uniform", "--num-clusters", "1"]
        options += ["--federation.measure_error=false", f"--federation.dept_clusters={mixed}"]
        options += [f"--audit.canaries={args.canaries}", *way.options]
        if way.noise is not None:
            noise_seed = derive_seed(self.seed, "leaks") % 2**31
            values = f"{{clip: {CLIP}, noise_multiplier: {way.noise}, noise_seed: {noise_seed}, delta: {DELTA}}}"
            options += ["--federation.guard.name=dp", f"--federation.privacy={values}"]
        return parse_config(options)

    def play(self, way: Way) -> tuple[RunConfig, FederationState, dict[str, float]]:
        """A run: its config, its last state, and what it costs a client in a round; `sites` has what they sent."""
        config, timed = self._config(way), TimedRound()
        self.sites.begin(config, way, self.seed)
        trainer = FederatedTrainer(
            fabric=self.parts.fabric,
            callbacks=[timed],
            federation=config.federation,
            training=config.training,
            seed=self.seed,
        )
        start = FederationState.begin(self._initial, self._departments)
        state = trainer.fit(self.parts.module, self.parts.data, clients=self.sites, resume_from=start)
        seconds, sent = self.sites.seconds + timed.seconds, self.sites.sent
        cost = {"loss": self.loss(state.departments), "kib": self.sites.bytes / sent / 1024, "seconds": seconds / sent}
        return config, state, cost

    def whole(self, states: Mapping[str, LoraState]) -> Adapters:
        """Departments' adapters, with their clients."""
        return [(own, states[name]) for name, own in self._departments.items()]

    def loss(self, states: Mapping[str, LoraState] | None = None) -> float:
        """Held-out loss of departments' adapters, mean over clients; of the base model without any."""
        found = dict.fromkeys(self._departments, self._initial) if states is None else states
        return self.attacker.held_out_loss(self.whole(found))

    def single(self) -> Adapters:
        """Clients' adapters, as the server has received them in the last round."""
        return [([client_id], state) for client_id, state in self.sites.received.items()]
