"""Optimizer steps of clients that share a forward pass, each trained exactly as if it were alone.

Every client steps through its own batches. The loss is the sum of the clients' own means, gradients are clipped for
each client, and AdamW is elementwise, so no client influences another.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.packing import epoch_order
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, OnStep
from fl_lightning.modeling.activation_checkpointing import recompute_layers
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.dropout import dropout_stream
from fl_lightning.module import LoraClientModule
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState
from fl_lightning.training.data_parallel import DataParallelShard
from fl_lightning.training.memory import MemoryLimit
from fl_lightning.training.step_graphs import StepGraphs
from fl_lightning.training.step_rows import RowMaker, StepRows

log = logging.getLogger(__name__)


class CohortFit:
    """Fits one cohort after another on one model.

    Args:
        fabric: gives device and precision.
        module: around the PEFT model.
        forward: `module` as Fabric set it up; takes a packed row and returns `ClientSums`.
        cohort: of the module's model.
        training: the ``training`` block.
        memory: the limit that is checked in every step.
        shard: this process's share of every micro-batch, if several processes train the same clients.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: LoraClientModule,
        forward: Any,
        cohort: LoraCohort,
        training: TrainingConfig,
        memory: MemoryLimit,
        shard: DataParallelShard | None = None,
    ) -> None:
        self.training = training
        self._fabric, self._module, self._forward, self._cohort = fabric, module, forward, cohort
        self._memory, self._shard = memory, shard
        self._graphs: StepGraphs | None = None
        self._has_said_why = False
        self._precision = fabric.strategy.precision
        self._fresh_precision = copy.deepcopy(self._precision.state_dict())

    @property
    def has_loss_scale(self) -> bool:
        """Whether gradients are scaled (fp16). All clients of a cohort would share the scale, and skip steps for it."""
        return bool(self._fresh_precision)

    def fit(
        self,
        tasks: Sequence[ClientTask],
        record_sets: Sequence[Sequence[Example]],
        on_step: OnStep | None = None,
    ) -> list[ClientUpdate]:
        """Fit the clients of a cohort together.

        Args:
            tasks: of K clients, with one trainable factor and one strength of the pull towards their anchors.
            record_sets: the training records of each.
            on_step: called after every optimizer step.

        Returns:
            K updates in the order of the tasks, without metrics.
        """
        started = time.perf_counter()
        plans = [self._batch_plan(task, records) for task, records in zip(tasks, record_sets, strict=True)]
        states, losses = self._fit_cohort(tasks, plans, on_step)
        seconds = time.perf_counter() - started
        tokens = [sum(len(e) for window in plan for batch in window for e in batch) for plan in plans]
        return [
            ClientUpdate(
                task.client_id,
                task.round_num,
                states[k],
                len(record_sets[k]),
                tokens[k],
                losses[k],
                seconds * tokens[k] / sum(tokens),
                is_own=task.is_own,
            )
            for k, task in enumerate(tasks)
        ]

    def _batch_plan(self, task: ClientTask, records: Sequence[Example]) -> list[list[list[Example]]]:
        """A window of micro-batches for each optimizer step of the fit; the last window of an epoch may be partial."""
        size = self.training.accumulate_grad_batches
        plan = []
        for epoch in range(self.training.local_epochs):
            seed = derive_seed(task.run_seed, "order", task.seed_round, task.client_id, epoch)
            order = epoch_order(len(records), self.training.batch_size, seed)
            batches = [[records[i] for i in batch] for batch in order]
            plan += [batches[i : i + size] for i in range(0, len(batches), size)]
        return plan

    def _fit_cohort(
        self, tasks: Sequence[ClientTask], plans: Sequence[list[list[list[Example]]]], on_step: OnStep | None
    ) -> tuple[list[LoraState], list[list[float]]]:
        """The fitted state of each client and its loss in each step of its plan.

        A client whose plan is finished is copied before later steps of the others could move it.
        """
        device = self._fabric.device
        self._precision.load_state_dict(self._fresh_precision)  # no client inherits another's loss scale
        self._cohort.load(
            [task.start for task in tasks],
            device,
            tasks[0].trainable_factor,
            relative_scalings=[task.relative_scaling for task in tasks],
            frozen_products=[task.frozen_product for task in tasks],
        )
        pulls = []
        if self.training.proximal_mu:
            pulls.append(([p.detach().clone() for p in self._cohort.parameters()], self.training.proximal_mu))
        if strength := tasks[0].anchor_strength:
            anchors = self._cohort.values_of([task.anchor for task in tasks], tasks[0].trainable_factor)
            pulls.append((anchors, strength))
        plain_optimizer = self._module.make_optimizer(self._cohort.parameters())
        optimizer = cast(torch.optim.Optimizer, self._fabric.setup_optimizers(plain_optimizer))
        rank = [] if self._shard is None else [self._shard.rank]
        streams = [dropout_stream(derive_seed(t.run_seed, "dropout", t.seed_round, t.client_id, *rank)) for t in tasks]
        states: list[LoraState] = [{} for _ in tasks]
        losses: list[torch.Tensor] = []
        steps = max(map(len, plans))
        graphs = self._usable_graphs()
        maker = RowMaker(self._cohort, streams, device, self._module.parts, self._shard, graphs is not None)
        self._module.eval()  # the base's own dropout stays off; the cohort draws that of the adapters for each client
        descent = self._cohort.mixer.descent(rate) if self._cohort.mixer and (rate := tasks[0].alpha_rate) else None
        with self._attached():
            for step, rows in enumerate(maker.steps(plans)):
                losses.append(self._step(rows, optimizer, pulls, graphs, None if step else descent))
                for k, plan in enumerate(plans):
                    if step + 1 == len(plan):
                        states[k] = self._cohort.state(k)
                if on_step is not None:
                    on_step([task.client_id for task in tasks], (step + 1) / steps, rows.num_tokens)
        by_client = torch.stack(losses, dim=1).tolist()  # once: every read of a GPU's numbers waits for the GPU
        return states, [values[: len(plan)] for values, plan in zip(by_client, plans, strict=True)]

    def _usable_graphs(self) -> StepGraphs | None:
        """Graphs for the cohort that is loaded; None where rows run call by call."""
        if not self.training.cuda_graphs:
            return None
        reasons = {
            "there is no GPU": self._fabric.device.type != "cuda",
            "fp16 scales the loss": self.has_loss_scale,
            "several processes share a row": self._shard is not None,
            "rows are not packed": self._module.layout != "packed",
            "clients have frozen products": self._cohort.has_frozen_products,
        }
        if any(reasons.values()):
            reason = next(text for text, applies in reasons.items() if applies)
            if not self._has_said_why:
                log.info("training.cuda_graphs: rows run without graphs (%s)", reason)
            self._has_said_why = True
            return None
        if self._graphs is None:
            self._graphs = StepGraphs(self._forward, self._cohort, self._fabric.autocast)
        return self._graphs

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """The cohort trains while this block runs."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._cohort.attached())
            if self.training.gradient_checkpointing:
                stack.enter_context(recompute_layers(self._module.model.get_base_model()))
            yield

    def _step(
        self,
        step: StepRows,
        optimizer: torch.optim.Optimizer,
        pulls: list[tuple[list[torch.Tensor], float]],
        graphs: StepGraphs | None = None,
        descent: torch.optim.Optimizer | None = None,
    ) -> torch.Tensor:
        """One optimizer step.

        Args:
            step: what it trains on.
            optimizer: of the cohort's parameters.
            pulls: proximal terms: (values of the parameters, strength of the pull towards them).
            graphs: run the rows; None runs them call by call.
            descent: steps APFL's alphas by the same gradients, of the values before this step; None leaves them.

        Returns:
            The mean loss over each client's targets, shape (K,).
        """
        total = torch.zeros(len(step.num_targets), device=self._fabric.device)
        for row in step.rows:
            if graphs is not None:
                total += graphs.add_gradients(row, step.num_targets)
                continue
            with self._fabric.autocast():
                self._cohort.set_row(row.places)
            losses = row.weight * self._forward(row.batch).loss / step.num_targets
            self._memory.check()  # most of a step's memory is in use now
            self._fabric.backward(losses.sum())
            total += losses.detach()
        if self._shard is not None:
            learned = [] if descent is None else descent.param_groups[0]["params"]
            total = self._shard.all_reduce_sum(total, [*self._cohort.parameters(), *learned])
        # fp16: clip the true gradients, not the scaled ones; the scaler knows the inner optimizer only.
        self._precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))
        for anchors, strength in pulls:
            self._cohort.add_proximal_gradients(anchors, strength)
        self._cohort.clip_gradients(self.training.max_grad_norm)
        if descent is not None and self._cohort.mixer is not None:
            self._precision.unscale_gradients(descent)
            descent.step()
            self._cohort.mixer.end_step()
        optimizer.step()
        optimizer.zero_grad()
        return total
