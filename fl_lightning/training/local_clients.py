"""Training and evaluating clients on this machine, under Fabric: one base model, adapters copied in and out.

`LocalClients` is one of the transports that the trainer may use: tasks in, updates out.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.protocol import (
    ClientTask,
    ClientUpdate,
    CohortJournal,
    EvaluationJob,
    Metrics,
    OnStep,
    Split,
)
from fl_lightning.modeling.activation_checkpointing import check_layers
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.module import LoraClientModule
from fl_lightning.state import LoraState
from fl_lightning.training.cohort_fit import CohortFit
from fl_lightning.training.cohorts import cohorts_within_budget, fixed_size_cohorts
from fl_lightning.training.data_parallel import DataParallelShard
from fl_lightning.training.distillation import Distillation
from fl_lightning.training.memory import MemoryLimit, is_out_of_memory
from fl_lightning.training.row_budget import row_budget
from fl_lightning.training.row_evaluation import EVAL_ADAPTERS, RowEvaluation

log = logging.getLogger(__name__)


class LocalClients:
    """The clients of a federation, all in this process.

    Args:
        fabric: launched; gives device and precision.
        module: around the PEFT model; set up with Fabric here, once.
        data: {client_id: tokenized records}.
        training: the ``training`` block.
        clients_at_once: clients in a cohort, or ``auto``, see `cohorts`.
        shard: this process's share of every micro-batch, if several processes train the same clients.
        memory_limit_mb: memory of this process, checked in every step of a fit; None sets no limit.

    Attributes:
        shards_base_model: whether each process holds a share of the base model only, so that all processes must run
            the same forward passes.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: LoraClientModule,
        data: Mapping[str, ClientData],
        training: TrainingConfig,
        clients_at_once: int | Literal["auto"] = 1,
        shard: DataParallelShard | None = None,
        memory_limit_mb: int | None = None,
    ) -> None:
        self.data = data
        self.training = training
        self.clients_at_once = clients_at_once
        self._shard = shard
        self._max_cohort: int | None = None
        self._memory_limit_mb = memory_limit_mb
        self._device, self._model = fabric.device, module.model
        # bitsandbytes has already moved a quantized base to its device.
        is_placed = bool(getattr(module.model.get_base_model(), "is_loaded_in_4bit", False))
        self.shards_base_model = shard is not None and shard.shards_base_model
        if shard is not None and shard.shards_base_model:
            shard.shard_base_model(module.model)
            is_placed = True
        forward = fabric.setup_module(module, move_to_device=not is_placed)
        cohort = LoraCohort(module.model)
        memory = MemoryLimit(memory_limit_mb, fabric.device)
        self._fitting = CohortFit(fabric, module, forward, cohort, training, memory, shard)
        self._evaluation = RowEvaluation(module, forward, cohort, fabric.device)
        self._distillation = Distillation(fabric, module, cohort, training)
        if training.gradient_checkpointing:
            check_layers(module.model.get_base_model())
        with fabric.autocast():
            module.choose_layout()
        if self.shards_base_model and module.layout == "single":
            raise InputError(
                "fabric.strategy: expected auto or ddp for a base that trains one record at a time, got fsdp"
            )
        self._evaluation.check()

    def fit(
        self, tasks: Sequence[ClientTask], on_step: OnStep | None = None, journal: CohortJournal | None = None
    ) -> Iterator[ClientUpdate]:
        """Fit the clients of the tasks, except cohorts that are in the journal; updates keep the order of the tasks."""
        for cohort in self.cohorts(tasks):
            updates = journal.replay(cohort) if journal is not None else None
            if updates is None:
                updates = self.fit_cohort(cohort, on_step)
                if journal is not None:
                    journal.record(updates)
            yield from updates

    def cohorts(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        """Divide tasks into cohorts, in order: `clients_at_once` each, or under ``auto`` as many as fill a step.

        ``auto`` uses the mean tokens of each client's micro-batches rather than measured time or free memory, so that a
        run is always divided in the same way on the same kind of device. Departments come in order, so neighbors have
        similar records. Own adapters make cohorts of their own, so that the bits of the others do not depend on them.
        """
        by_chain = ([task for task in tasks if task.is_own is own] for own in (False, True))
        return [cohort for chain in by_chain for cohort in self._cohorts(chain)]

    def _cohorts(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        # All clients of a step share a loss scale: one client's overflow would skip the others' steps.
        size = 1 if self._fitting.has_loss_scale else self.clients_at_once
        if size != "auto":
            return fixed_size_cohorts(tasks, size)
        budget = row_budget(self._model, self._device, self.training.gradient_checkpointing, self._memory_limit_mb)
        return cohorts_within_budget(tasks, [self._step_tokens(task) for task in tasks], budget)

    def _step_tokens(self, task: ClientTask) -> float:
        """Mean tokens of a client's micro-batches."""
        examples = self.data[task.client_id].train
        return sum(map(len, examples)) / len(examples) * min(self.training.batch_size, len(examples))

    def fit_cohort(self, tasks: Sequence[ClientTask], on_step: OnStep | None = None) -> list[ClientUpdate]:
        """Fit a cohort of clients; if memory runs out, fit it and all later ones in parts of half its size.

        Raises:
            RunError: if memory runs out with these parts as well.
        """
        updates: list[ClientUpdate] = []
        while remaining := tasks[len(updates) :]:
            part = remaining[: self._max_cohort]
            try:
                updates += self._fit_part(part, on_step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # With data parallelism the other processes would wait for the step that this one could not take.
                if len(part) == 1 or self._max_cohort is not None or self._shard is not None:
                    raise RunError(
                        f"{part[0].client_id} and {len(part) - 1} others: out of memory ({str(error)[:120]}); lower "
                        "training.clients_at_once, training.batch_size, data.max_length or lora.r, or set "
                        "training.gradient_checkpointing: true"
                    ) from error
                self._max_cohort = (len(part) + 1) // 2
                log.warning("out of memory with %d clients at once; continuing with %d", len(part), self._max_cohort)
        return updates

    def _fit_part(self, tasks: Sequence[ClientTask], on_step: OnStep | None) -> list[ClientUpdate]:
        """Fit clients together, and evaluate the fitted adapters of the tasks that ask for it."""
        updates = self._fitting.fit(tasks, [self.data[task.client_id].train for task in tasks], on_step)
        jobs = [
            (task.adapter(update.state), task.client_id)
            for task, update in zip(tasks, updates, strict=True)
            if task.evaluate
        ]
        metrics = dict(zip((client_id for _, client_id in jobs), self.evaluate(jobs), strict=True))
        return [replace(update, metrics=metrics.get(update.client_id)) for update in updates]

    @torch.no_grad()
    def evaluate(self, jobs: Iterable[EvaluationJob], split: Split = "eval") -> list[Metrics]:
        """Metrics of each adapter on its client's held-out or selection records; adapters share forward passes."""
        metrics: list[Metrics] = []
        remaining = iter(jobs)
        while group := list(itertools.islice(remaining, EVAL_ADAPTERS)):
            record_sets = [getattr(self.data[client_id], split) for _, client_id in group]
            metrics += self._evaluation.evaluate([state for state, _ in group], record_sets)
        return metrics

    def target_losses(
        self, states: Sequence[Mapping[str, torch.Tensor]], examples: Sequence[Example]
    ) -> list[npt.NDArray[np.float64]]:
        """Losses of each record's target tokens under several adapters, see `RowEvaluation.target_losses`."""
        return self._evaluation.target_losses(states, examples)

    def target_losses_of(
        self, states: Sequence[LoraState], client_ids: Sequence[str], split: Split
    ) -> npt.NDArray[np.float64]:
        """Losses of the target tokens of some clients' records under several adapters, shape (tokens, adapters)."""
        records = [example for client_id in client_ids for example in getattr(self.data[client_id], split)]
        return np.concatenate([np.empty((0, len(states))), *self.target_losses(states, records)])

    def distill(
        self,
        start: Mapping[str, torch.Tensor],
        states: Sequence[Mapping[str, torch.Tensor]],
        weights: Sequence[float],
        examples: Sequence[Example],
        *,
        epochs: int,
        seed: int,
    ) -> LoraState:
        """One adapter with the predictions of a mixture, see `Distillation.distill`."""
        return self._distillation.distill(start, states, weights, examples, epochs=epochs, seed=seed)

    def evaluate_records(
        self, state: Mapping[str, torch.Tensor], examples: Sequence[Example], relative_scaling: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Loss, correct targets and targets of one adapter on each record, see `RowEvaluation.evaluate_records`."""
        return self._evaluation.evaluate_records(state, examples, relative_scaling)

    def with_adapter(
        self, state: Mapping[str, torch.Tensor], relative_scaling: float = 1.0
    ) -> contextlib.AbstractContextManager[Any]:
        """The model with an adapter on it while this block runs, see `RowEvaluation.with_adapter`."""
        return self._evaluation.with_adapter(state, relative_scaling)
