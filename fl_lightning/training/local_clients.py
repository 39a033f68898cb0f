"""Training and evaluating clients on this machine, under Fabric: one base model, adapters copied in and out.

`LocalClients.fit` is the transport that the trainer talks to: tasks in, updates out. The trainer does not care
that the clients happen to live in this process.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.packing import epoch_order, pack
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, CohortJournal, EvaluationJob, Metrics, OnStep
from fl_lightning.modeling.activation_checkpointing import check_layers, recomputed
from fl_lightning.modeling.cohort import LoraCohort, dropout_generator
from fl_lightning.module import LoraClientModule
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState
from fl_lightning.training.memory import MemoryCeiling
from fl_lightning.training.worker_processes import Shard

log = logging.getLogger(__name__)

STEP_TOKENS = {"cpu": 1000, "cuda": 16384}
"""Tokens of a cohort's step that keep the device busy: more falls out of a CPU's cache, fewer leave a GPU idle."""

EVAL_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Tokens in a row of an evaluation, where nothing is kept for a backward pass."""

EVAL_ADAPTERS = 16
"""Adapters that are loaded together for an evaluation; a row holds records of as many as fill it."""


class LocalClients:
    """The clients of a federation, all in this process.

    Args:
        fabric: launched; gives device and precision.
        module: around the PEFT model; set up with Fabric here, once.
        data: {client_id: tokenised records}.
        training: the ``training`` block.
        clients_at_once: clients in a cohort, or ``auto``, see `cohorts`.
        shard: this process's share of every micro-batch, where several processes train the same clients.
        memory_limit_mb: what this process may take, looked at in every step of a fit; None sets no limit.

    Attributes:
        in_step: whether every process must run the same forward passes, since each holds a part of the base.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: LoraClientModule,
        data: Mapping[str, ClientData],
        training: TrainingConfig,
        clients_at_once: int | Literal["auto"] = 1,
        shard: Shard | None = None,
        memory_limit_mb: int | None = None,
    ) -> None:
        self.data = data
        self.training = training
        self.clients_at_once = clients_at_once
        self._shard = shard
        self._at_most: int | None = None
        self._fabric = fabric
        self._module = module
        # A quantised base is already where it belongs.
        placed = bool(getattr(module.model.get_base_model(), "is_loaded_in_4bit", False))
        self.in_step = shard is not None and shard.base_too
        if shard is not None and self.in_step:
            shard.cut_base(module.model)
            placed = True
        self._forward = fabric.setup_module(module, move_to_device=not placed)
        self._cohort = LoraCohort(module.model)
        self._precision = fabric.strategy.precision
        self._fresh_precision = copy.deepcopy(self._precision.state_dict())
        self._ceiling = MemoryCeiling(memory_limit_mb, fabric.device)
        if training.gradient_checkpointing:
            check_layers(module.model.get_base_model())
        module.check_packing()

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Fit the clients of the tasks, but for cohorts in the journal; updates come in the order of the tasks."""
        for cohort in self.cohorts(tasks):
            updates = journal.replay(cohort) if journal is not None else None
            if updates is None:
                updates = self.fit_clients(cohort, on_step)
                if journal is not None:
                    journal.record(updates)
            yield from updates

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
        """Fit a cohort of clients; if memory runs out, it and all later ones in parts of half its size.

        Raises:
            RunError: if memory runs out with these parts too.
        """
        updates: list[ClientUpdate] = []
        while rest := tasks[len(updates) :]:
            part = rest[: self._at_most]
            try:
                updates += self._fit_together(part, on_step)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                # Where processes share a fit, the others would wait for the step that this one could not take.
                if len(part) == 1 or self._at_most is not None or self._shard is not None:
                    raise RunError(
                        f"{part[0].client_id} and {len(part) - 1} others: out of memory ({str(error)[:120]}); lower "
                        "training.clients_at_once, training.batch_size, data.max_length or lora.r, or set "
                        "training.gradient_checkpointing: true"
                    ) from error
                self._at_most = (len(part) + 1) // 2
                log.warning("out of memory with %d clients at once; going on with %d", len(part), self._at_most)
        return updates

    def _fit_together(self, tasks: Sequence[ClientTask], on_step: OnStep | None) -> list[ClientUpdate]:
        """Fit a cohort of clients together, each exactly as if it were alone.

        Every client steps its own batches; the loss is the sum of the clients' own means, clipping is per client,
        AdamW is elementwise. A client whose batches are used up is snapshot before further steps could move it.
        """
        started = time.perf_counter()
        plans = [self._plan(task) for task in tasks]
        self._precision.load_state_dict(self._fresh_precision)  # no client inherits another's loss scale
        self._cohort.load(
            [task.start for task in tasks],
            self._fabric.device,
            tasks[0].trainable_factor,
            gains=[task.relative_scaling for task in tasks],
            frozen=[task.frozen_product for task in tasks],
        )
        starts = [p.detach().clone() for p in self._cohort.parameters()] if self.training.proximal_mu else []
        made = self._module.make_optimizer(self._cohort.parameters())
        optimizer = cast(torch.optim.Optimizer, self._fabric.setup_optimizers(made))
        device = self._fabric.device
        part = [] if self._shard is None else [self._shard.rank]
        generators = [
            dropout_generator(derive_seed(t.run_seed, "dropout", t.round_num, t.client_id, *part), device)
            for t in tasks
        ]
        states: list[LoraState | None] = [None] * len(tasks)
        losses: list[torch.Tensor] = []
        steps = max(map(len, plans))
        self._module.eval()  # the base's own dropout stays off; the adapters' is drawn per client by the cohort
        with self._attached():
            for step in range(steps):
                micro = [plan[step] if step < len(plan) else [] for plan in plans]
                losses.append(self._step(micro, optimizer, generators, starts))
                for k, plan in enumerate(plans):
                    if step + 1 == len(plan):
                        states[k] = self._cohort.state(k)
                if on_step is not None:
                    stepped = sum(len(e) for batches in micro for batch in batches for e in batch)
                    on_step([task.client_id for task in tasks], (step + 1) / steps, stepped)
        by_client = torch.stack(losses, dim=1).tolist()  # once, since every look at a GPU's numbers waits for it
        seconds = time.perf_counter() - started
        metrics = self._evaluate_own(tasks, [state or {} for state in states])
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
                metrics.get(task.client_id),
            )
            for k, task in enumerate(tasks)
        ]

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """While this block runs, the cohort trains."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._cohort.attached())
            if self.training.gradient_checkpointing:
                stack.enter_context(recomputed(self._module.model.get_base_model(), self._cohort))
            yield

    def _step(
        self,
        micro: list[list[list[Example]]],
        optimizer: torch.optim.Optimizer,
        generators: list[torch.Generator | np.random.Generator],
        starts: list[torch.Tensor],
    ) -> torch.Tensor:
        """One optimizer step: `micro[k]` holds client k's micro-batches of its window, perhaps a partial one."""
        device = self._fabric.device
        sizes = torch.tensor([max(1, len(batches)) for batches in micro], device=device)
        total = torch.zeros(len(micro), device=device)
        for index in range(max(map(len, micro))):
            examples = [batches[index] if index < len(batches) else [] for batches in micro]
            targets = [max(1, sum(int(e.supervised.sum()) for e in batch)) for batch in examples]
            mine = examples if self._shard is None else self._shard.part(examples)
            weight = 1.0
            if self.in_step and not any(mine):  # the others wait for this process's part of the base
                mine, weight = examples, 0.0
            if any(mine):
                row = pack(mine).to(device)
                self._cohort.arrange(row.client_tokens, generators)
                losses = weight * self._forward(row).loss / (sizes * torch.tensor(targets, device=device))
                self._ceiling.check()  # here most of a step's memory is taken
                self._fabric.backward(losses.sum())
                total += losses.detach()
        if self._shard is not None:
            total = self._shard.sum(total, self._cohort.parameters())
        # fp16: clip the true gradients, not the scaled ones; the scaler keeps its books by the inner optimizer.
        self._precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))
        if self.training.proximal_mu:
            self._cohort.pull_gradients(starts, self.training.proximal_mu)
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
    def evaluate(self, jobs: Iterable[EvaluationJob]) -> list[Metrics]:
        """Each adapter on the client's held-out records, in eval mode; several adapters share a forward pass."""
        results: list[Metrics] = []
        remaining = iter(jobs)
        while together := list(itertools.islice(remaining, EVAL_ADAPTERS)):
            results += self._evaluate([state for state, _ in together], [client_id for _, client_id in together])
        return results

    @torch.no_grad()
    def evaluate_records(
        self, state: Mapping[str, torch.Tensor], examples: Sequence[Example], gain: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """One adapter on records: (summed loss, correct targets, targets) of each, shape (n, 3)."""
        device, sums = self._fabric.device, np.zeros((len(examples), 3))
        self._module.eval()
        self._cohort.load([state], device, gains=[gain])
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
        budget = EVAL_TOKENS["cuda" if device.type == "cuda" else "cpu"]
        with self._cohort.attached():
            while order:
                row = [order.pop(0)]
                while order and sum(len(examples[i]) for i in row) + len(examples[order[0]]) <= budget:
                    row.append(order.pop(0))
                batch = pack([[examples[i]] for i in row])
                self._cohort.arrange((batch.num_tokens,))
                found = self._forward(batch.to(device))
                sums[row] = torch.stack([part.double().cpu() for part in found], dim=1).numpy()
        return sums

    @contextlib.contextmanager
    def wearing(self, state: Mapping[str, torch.Tensor], gain: float = 1.0) -> Iterator[Any]:
        """The model, inside this block with an adapter of any rank on it, for generation one prompt or many a batch."""
        self._cohort.load([state], self._fabric.device, gains=[gain])
        self._cohort.arrange_one()
        with self._cohort.attached():
            yield self._module.model

    def _evaluate_own(self, tasks: Sequence[ClientTask], states: Sequence[LoraState]) -> dict[str, Metrics]:
        """The figures of fitted adapters on their own clients' held-out records, for the tasks that want them."""
        pairs = zip(tasks, states, strict=True)
        wanted = [(task.adapter(state), task.client_id) for task, state in pairs if task.evaluate]
        return dict(zip((client_id for _, client_id in wanted), self.evaluate(wanted), strict=True))

    def _evaluate(self, states: Sequence[LoraState], client_ids: Sequence[str]) -> list[Metrics]:
        sets = [self.data[client_id].eval for client_id in client_ids]
        device = self._fabric.device
        loss, correct = torch.zeros(2, len(sets), dtype=torch.float64)
        targets = [0] * len(sets)
        self._module.eval()
        self._cohort.load(states, device)
        with self._cohort.attached():
            for examples in rows(sets, EVAL_TOKENS["cuda" if device.type == "cuda" else "cpu"]):
                row = pack(examples)
                self._cohort.arrange(row.client_tokens)
                sums = self._forward(row.to(device))
                loss += sums.loss.double().cpu()
                correct += sums.correct.double().cpu()
                targets = [so_far + new for so_far, new in zip(targets, row.client_targets, strict=True)]
        return [Metrics(float(loss[k]), float(correct[k]), targets[k], len(sets[k])) for k in range(len(sets))]


def _out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system by way of torch, had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def rows(sets: Sequence[Sequence[Example]], budget: int) -> Iterator[list[list[Example]]]:
    """The examples of K sets in rows of at most `budget` tokens; a longer example still goes in whole.

    Yields:
        For each row K lists; sets come one after another, and the examples of a set shortest first, so that sequences
        of like length meet.
    """
    row: list[list[Example]] = [[] for _ in sets]
    filled = 0
    for k, examples in enumerate(sets):
        for example in sorted(examples, key=len):
            if filled and filled + len(example) > budget:
                yield row
                row, filled = [[] for _ in sets], 0
            row[k].append(example)
            filled += len(example)
    if filled:
        yield row
