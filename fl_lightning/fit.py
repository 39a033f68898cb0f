"""Training and evaluating clients on this machine, under Fabric: one base model, adapters copied in and out.

`LocalClients.exchange` is the transport that the trainer talks to: tasks in, updates out. The trainer does not care
that the clients happen to live in this process.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

import numpy as np
import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.federation import ClientData
from fl_lightning.data.packing import PackedBatch, epoch_order, pack
from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.cohort import LoraCohort, dropout_generator
from fl_lightning.module import LoraClientModule
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState

OnStep: TypeAlias = Callable[[Sequence[str], float, int], None]
"""Called after each optimizer step with the cohort's client ids, the share done in (0, 1], and the step's tokens."""

STEP_TOKENS = {"cpu": 1000, "cuda": 16384}
"""Tokens of a cohort's step that keep the device busy: more falls out of a CPU's cache, fewer leave a GPU idle."""

EVAL_TOKENS = 2048
"""Tokens in a row of an evaluation; a longer record still goes in whole."""


@dataclass(frozen=True)
class ClientTask:
    """One client's fit in one round: everything a client needs to be told."""

    client_id: str
    round_num: int
    start: LoraState
    run_seed: int

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]


@dataclass(frozen=True)
class ClientUpdate:
    """What comes back from a client.

    Attributes:
        state: all LoRA tensors after the fit, fp32 on the CPU.
        num_examples: training records, the aggregation weight.
        num_tokens: tokens trained on, over all epochs.
        losses: mean loss of each optimizer step.
        seconds: wall time; a cohort's time is shared out by tokens.
    """

    client_id: str
    round_num: int
    state: LoraState
    num_examples: int
    num_tokens: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def department(self) -> str:
        """The part of the id before the slash."""
        return self.client_id.split("/", 1)[0]


@dataclass(frozen=True)
class Metrics:
    """Figures of an adapter on held-out records: sums, so that they add up over clients."""

    loss_sum: float
    correct: float
    num_tokens: int
    num_examples: int

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.num_tokens + other.num_tokens,
            self.num_examples + other.num_examples,
        )


class LocalClients:
    """The clients of a federation, all in this process.

    Args:
        fabric: launched; gives device and precision.
        module: around the PEFT model; set up with Fabric here, once.
        data: {client_id: tokenised records}.
        training: the ``training`` block.
        clients_at_once: clients in a cohort, or ``auto``, see `cohorts`.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: LoraClientModule,
        data: Mapping[str, ClientData],
        training: TrainingConfig,
        clients_at_once: int | Literal["auto"] = 1,
    ) -> None:
        self.data = data
        self.training = training
        self.clients_at_once = clients_at_once
        self._fabric = fabric
        self._module = module
        # A quantised base is already where it belongs.
        placed = bool(getattr(module.model.get_base_model(), "is_loaded_in_4bit", False))
        self._forward = fabric.setup_module(module, move_to_device=not placed)
        self._cohort = LoraCohort(module.model)
        self._precision = fabric.strategy.precision
        self._fresh_precision = copy.deepcopy(self._precision.state_dict())
        module.check_packing()

    def exchange(self, tasks: Sequence[ClientTask], on_step: OnStep | None = None) -> Iterator[ClientUpdate]:
        """Fit the clients of the tasks; updates come in the order of the tasks."""
        for cohort in self.cohorts(tasks):
            yield from self.fit_clients(cohort, on_step)

    def cohorts(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        """Tasks cut into cohorts, in order: so many clients each, or as many as fill the device's step under ``auto``.

        ``auto`` goes by the mean tokens of the clients' micro-batches and not by a stopwatch, so that the same run is
        cut the same way every time. Clients of like records are neighbours anyway: departments come in order.
        """
        # A loss scale is shared by all who step together: one client's overflow would skip the others' steps.
        size = 1 if self._fresh_precision else self.clients_at_once
        if size != "auto":
            return [list(tasks[i : i + size]) for i in range(0, len(tasks), size)]
        budget = STEP_TOKENS["cuda" if self._fabric.device.type == "cuda" else "cpu"]
        groups: list[list[ClientTask]] = []
        filled = 0.0
        for task in tasks:
            examples = self.data[task.client_id].train
            tokens = sum(map(len, examples)) / len(examples) * min(self.training.batch_size, len(examples))
            if groups and filled + tokens <= budget:
                groups[-1].append(task)
                filled += tokens
            else:
                groups.append([task])
                filled = tokens
        return groups

    def fit_clients(self, tasks: Sequence[ClientTask], on_step: OnStep | None = None) -> list[ClientUpdate]:
        """Fit a cohort of clients together, each exactly as if it were alone.

        Every client steps its own batches; the loss is the sum of the clients' own means, clipping is per client,
        AdamW is elementwise. A client whose batches are used up is snapshot before further steps could move it.
        """
        started = time.perf_counter()
        plans = [self._plan(task) for task in tasks]
        self._precision.load_state_dict(self._fresh_precision)  # no client inherits another's loss scale
        self._cohort.load([task.start for task in tasks], self._fabric.device)
        made = self._module.make_optimizer(self._cohort.parameters())
        optimizer = cast(torch.optim.Optimizer, self._fabric.setup_optimizers(made))
        device = self._fabric.device
        generators = [
            dropout_generator(derive_seed(t.run_seed, "dropout", t.round_num, t.client_id), device) for t in tasks
        ]
        states: list[LoraState | None] = [None] * len(tasks)
        losses: list[torch.Tensor] = []
        steps = max(map(len, plans))
        self._module.eval()  # the base's own dropout stays off; the adapters' is drawn per client by the cohort
        with self._cohort.attached():
            for step in range(steps):
                micro = [plan[step] if step < len(plan) else [] for plan in plans]
                losses.append(self._step(micro, optimizer, generators))
                for k, plan in enumerate(plans):
                    if step + 1 == len(plan):
                        states[k] = self._cohort.state(k)
                if on_step is not None:
                    stepped = sum(len(e) for batches in micro for batch in batches for e in batch)
                    on_step([task.client_id for task in tasks], (step + 1) / steps, stepped)
        by_client = torch.stack(losses, dim=1).tolist()  # once, since every look at a GPU's numbers waits for it
        seconds = time.perf_counter() - started
        tokens = [sum(len(e) for window in plan for batch in window for e in batch) for plan in plans]
        return [
            ClientUpdate(
                task.client_id,
                task.round_num,
                states[k] or {},
                len(self.data[task.client_id].train),
                tokens[k],
                by_client[k][: len(plans[k])],
                seconds * tokens[k] / sum(tokens),
            )
            for k, task in enumerate(tasks)
        ]

    def _step(
        self,
        micro: list[list[list[Example]]],
        optimizer: torch.optim.Optimizer,
        generators: list[torch.Generator | np.random.Generator],
    ) -> torch.Tensor:
        """One optimizer step: `micro[k]` holds client k's micro-batches of its window, perhaps a partial one."""
        device = self._fabric.device
        sizes = torch.tensor([max(1, len(batches)) for batches in micro], device=device)
        total = torch.zeros(len(micro), device=device)
        for index in range(max(map(len, micro))):
            row = pack([batches[index] if index < len(batches) else [] for batches in micro]).to(device)
            self._cohort.arrange(row.client_tokens, generators)
            means = self._forward(row).mean_loss() / sizes
            self._fabric.backward(means.sum())
            total += means.detach()
        # fp16: clip the true gradients, not the scaled ones; the scaler keeps its books by the inner optimizer.
        self._precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))
        self._cohort.clip_gradients(self.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return total

    def _plan(self, task: ClientTask) -> list[list[list[Example]]]:
        """For each optimizer step of the fit its window of micro-batches; the last of an epoch may be partial."""
        examples = self.data[task.client_id].train
        size = self.training.accumulate_grad_batches
        plan = []
        for epoch in range(self.training.local_epochs):
            seed = derive_seed(task.run_seed, "order", task.round_num, task.client_id, epoch)
            order = epoch_order(len(examples), self.training.batch_size, seed)
            batches = [[examples[i] for i in batch] for batch in order]
            plan += [batches[i : i + size] for i in range(0, len(batches), size)]
        return plan

    @torch.no_grad()
    def evaluate(self, jobs: Sequence[tuple[LoraState, Sequence[Example]]]) -> list[Metrics]:
        """Each adapter on its records, in eval mode: loss and token accuracy sums, in the order of the jobs."""
        self._module.eval()
        results = []
        with self._cohort.attached():
            for state, examples in jobs:
                self._cohort.load([state], self._fabric.device)
                loss = correct = 0.0
                targets = 0
                for row in _rows(examples):
                    self._cohort.arrange(row.client_tokens)
                    sums = self._forward(row.to(self._fabric.device))
                    loss, correct = loss + float(sums.loss[0]), correct + float(sums.correct[0])
                    targets += row.client_targets[0]
                results.append(Metrics(loss, correct, targets, len(examples)))
        return results


def _rows(examples: Sequence[Example]) -> Iterator[PackedBatch]:
    """The examples in rows of about EVAL_TOKENS tokens."""
    row: list[Example] = []
    for example in examples:
        if row and sum(map(len, row)) + len(example) > EVAL_TOKENS:
            yield pack([row])
            row = []
        row.append(example)
    if row:
        yield pack([row])
