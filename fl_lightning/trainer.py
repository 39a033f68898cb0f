"""The federated run: rounds × clients, calling hooks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric

from fl_lightning import signals
from fl_lightning.aggregation.products.department_product import Starts
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.callbacks.federated_round import FederatedRound
from fl_lightning.clustering.tree import NO_GROUPS, Tree
from fl_lightning.config import FederationConfig, LoraConfig, TrainingConfig
from fl_lightning.config.compatibility import check_compatible
from fl_lightning.data.client_data import POOL, ClientData, pooled
from fl_lightning.errors import RunError
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTask, ClientTransport
from fl_lightning.federation.round_report import RoundReport
from fl_lightning.federation.state import FederationState
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.module import LoraClientModule
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.training.client_sampling import sample_clients
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.worker_processes import Parallelism, SeveralProcesses, Shard, on_own_device

log = logging.getLogger(__name__)


class FederatedTrainer:
    """Runs federated rounds and calls the callbacks' hooks.

    Args:
        fabric: Lightning Fabric, with its loggers; a plain one on the best device where None.
        callbacks: in the order in which their hooks run; a `FederatedRound` is put first if there is none.
        federation: the ``federation`` block.
        training: the ``training`` block.
        lora: the ``lora`` block, for the profiles in it; the model's own rank and scale for everybody where None.
        seed: the run seed.
        run_folder: where callbacks write, by way of `writer`; None for a run that writes nothing.

    Raises:
        ValueError: if there is more than one `FederatedRound`.
        InputError: if choices of `federation` and `lora` do not go together.

    Example:
        >>> import torch
        >>> from fl_lightning import FederatedDataModule, FederatedTrainer, FederationConfig, LoraClientModule
        >>> from fl_lightning import ModelConfig, create_lora_model, load_base_model
        >>> base, tokenizer = load_base_model(ModelConfig(), dtype=torch.float32)
        >>> data = FederatedDataModule("bundled:departments", tokenizer, clients_per_dept=1, max_records=4)
        >>> trainer = FederatedTrainer(federation=FederationConfig(rounds=1))
        >>> trainer.fit(LoraClientModule(create_lora_model(base)), data).round_num
        1
    """

    def __init__(
        self,
        *,
        fabric: Fabric | None = None,
        callbacks: Sequence[FederatedCallback] = (),
        federation: FederationConfig | None = None,
        training: TrainingConfig | None = None,
        lora: LoraConfig | None = None,
        seed: int = 1234,
        run_folder: Path | None = None,
    ) -> None:
        self.federation_config = federation or FederationConfig()
        self.training = training or TrainingConfig()
        self.lora = lora or LoraConfig()
        check_compatible(self.federation_config, self.lora)
        self.policy = share_policy(self.federation_config.share)
        self.seed = seed
        self.run_folder = run_folder
        self.fabric = fabric or Fabric(accelerator="auto", devices=1)
        rounds = [c for c in callbacks if isinstance(c, FederatedRound)]
        if len(rounds) > 1:
            raise ValueError(f"callbacks: got {len(rounds)} FederatedRound, wanted at most one writer of the state")
        writer = rounds[0] if rounds else FederatedRound(self.federation_config, seed=seed)
        self.callbacks: list[FederatedCallback] = [writer, *(c for c in callbacks if c is not writer)]
        self.writer = BackgroundWriter()
        self.journal = Journal(None, self.writer)
        self.round_num = 0
        self.tasks: dict[str, ClientTask] = {}
        self.data: Mapping[str, ClientData] = {}
        self.history: list[tuple[int, dict[str, float]]] = []
        self._row: dict[str, float] = {}
        self.tree = NO_GROUPS
        self.federation: FederationState
        self.report: RoundReport
        self.module: LoraClientModule
        self.clients: ClientTransport

    def fit(
        self,
        module: LoraClientModule,
        datamodule: Any,
        *,
        clients: ClientTransport | None = None,
        resume_from: FederationState | None = None,
        history: Sequence[tuple[int, Mapping[str, float]]] = (),
        journal: Journal | None = None,
    ) -> FederationState:
        """Run the rounds.

        Args:
            module: around the PEFT model whose adapter is everybody's start.
            datamodule: a `FederatedDataModule`, or {client_id: ClientData}.
            clients: where updates come from; the clients in this process where None.
            resume_from: the state after the last complete round.
            history: the rows logged up to there; they are logged again, since loggers start a resumed run afresh.
            journal: keeps what a round has worked out until its checkpoint is written; None keeps nothing.

        Returns:
            The state after the last round.

        Raises:
            RunError: if a round gets no valid update.
            InputError: if a profile or a group names somebody who is not in the data.
        """
        self.module = module
        self.journal = journal or Journal(None, self.writer)
        self.data = datamodule if isinstance(datamodule, Mapping) else datamodule.federation()
        self.fabric.launch()
        self.lora.check_names(self.data)
        pools = self.policy.pools
        self.clients = clients or make_clients(self.fabric, module, self.data, self.training, pools=pools)
        departments = {client.department for client in self.data.values()}
        self.tree = Tree.of(self.federation_config.hierarchy.groups, departments)
        if resume_from is None:
            resume_from = FederationState.begin(collect_lora_state(module.model), departments, self.tree.groups)
        self.federation = resume_from
        self.federation.check()
        self.round_num = self.federation.round_num
        self.report = RoundReport(self.round_num)
        if isinstance(self.clients, SeveralProcesses) and self.fabric.global_rank > 0:
            names, states = sorted(departments), self.clients.serve()
            products = dict(zip(names, states[len(names) :], strict=True))
            return replace(
                self.federation,
                departments=dict(zip(names, states[: len(names)], strict=True)),
                products={name: product for name, product in products.items() if product},
            )
        with signals.at_safe_points():
            self._run(history)
        if isinstance(self.clients, SeveralProcesses):
            factors = [self.federation.departments[name] for name in sorted(departments)]
            self.clients.stop([*factors, *(self.federation.products.get(name, {}) for name in sorted(departments))])
        return self.federation

    def _run(self, history: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        try:
            for step, row in history:
                self.log(row)
                self._flush_row(step)
            self._call("on_federation_start")
            self._flush_row(self.round_num)
            for round_num in range(self.round_num + 1, self.federation_config.rounds + 1):
                self._run_round(round_num)
            self.writer.flush()
            self._call("on_federation_end")
        finally:
            for callback in self.callbacks:
                callback.on_federation_close(trainer=self)
            self.writer.close()

    def _run_round(self, round_num: int) -> None:
        self.round_num = round_num
        tasks = [self._pool_task(round_num)] if self.policy.pools else self._tasks(round_num)
        self.tasks = {task.client_id: task for task in tasks}
        self._call("on_round_start", tasks=tasks)
        expected = {task.client_id for task in tasks}
        for update in self.clients.fit(tasks, self._on_step, self.journal):
            if update.client_id not in expected or update.round_num != round_num:
                log.warning("round %d: an update of %r, which nobody asked for", round_num, update.client_id)
                continue
            expected.remove(update.client_id)
            self._call("on_client_end", update=update)
        self.writer.flush()  # the round before is on disk when this one ends
        try:
            self._call("on_aggregate")
        except RunError:
            self.journal.truncate(round_num)  # else a resumed run would find the same updates again
            raise
        self.tasks = {}  # they hold on to the states that the clients started from
        self._call("on_round_end")
        self._flush_row(round_num)

    def _tasks(self, round_num: int) -> list[ClientTask]:
        """A fit for each client that is asked, departments in order."""
        evaluate = any(callback.wants_client_metrics for callback in self.callbacks)
        trains = self.policy.trains(round_num)
        starts = Starts(self.federation_config.combiner, self.federation, round_num, self.seed)
        tasks = []
        for client_id in self._sample(round_num):
            gain = self.lora.gain(client_id)
            start, frozen = starts.of(client_id, self.lora.rank(client_id), gain)
            tasks.append(ClientTask(client_id, round_num, start, self.seed, evaluate, trains, gain, frozen))
        return tasks

    def _pool_task(self, round_num: int) -> ClientTask:
        """The fit of the one client that has all records; all departments are alike."""
        start = next(iter(self.federation.departments.values()))
        return ClientTask(POOL, round_num, start, self.seed, trainable_factor=self.policy.trains(round_num))

    def _sample(self, round_num: int) -> list[str]:
        """The clients that are asked in this round, departments in order."""
        config = self.federation_config
        departments: dict[str, list[str]] = {}
        for client_id, client in self.data.items():
            departments.setdefault(client.department, []).append(client_id)
        return [
            client_id
            for department, clients in departments.items()
            for client_id in sample_clients(
                clients,
                clients_per_round=config.clients_per_round,
                client_fraction=config.client_fraction,
                seed=self.seed,
                round_num=round_num,
                department=department,
            )
        ]

    def log(self, metrics: Mapping[str, float]) -> None:
        """Collect figures for the loggers; they go out as one row at the end of the round, its number as the step.

        What is not finite, such as the loss of a client that diverged, is named in the log and left out.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - finite.keys():
            log.warning("round %d: %s is %s", self.round_num, name, metrics[name])
        self._row.update(finite)

    def _flush_row(self, step: int) -> None:
        if self._row:
            row, self._row = self._row, {}
            self.history.append((step, row))
            self.writer.submit(lambda: self._write_row(step, row))

    def _write_row(self, step: int, row: dict[str, float]) -> None:
        self.fabric.log_dict(row, step=step)
        for logger in self.fabric.loggers:  # else CSV rows would wait for a hundred more
            if hasattr(logger, "save"):
                logger.save()

    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """(step, figures) of every row so far, this round's unfinished one included."""
        return [*self.history, *([(self.round_num, dict(self._row))] if self._row else [])]

    def _on_step(self, client_ids: Sequence[str], share: float, tokens: int) -> None:
        signals.check()
        self._call("on_step_end", client_ids=client_ids, share=share, tokens=tokens)

    def _call(self, hook: str, **arguments: Any) -> None:
        for callback in self.callbacks:
            signals.check()
            getattr(callback, hook)(trainer=self, **arguments)


def make_clients(
    fabric: Fabric,
    module: LoraClientModule,
    data: Mapping[str, ClientData],
    training: TrainingConfig,
    clients_at_once: int | Literal["auto"] = 1,
    parallelism: Parallelism = "clients",
    base_too: bool = False,
    *,
    pools: bool = False,
    memory_limit_mb: int | None = None,
) -> ClientTransport:
    """The clients on this process's device, or on those of all processes that `fabric` was launched with.

    Args:
        fabric: launched.
        module: around the PEFT model.
        data: {client_id: tokenised records}.
        training: the ``training`` block.
        clients_at_once: clients in a cohort, or ``auto``.
        parallelism: what several processes share.
        base_too: under ``data``, whether they share the base model's weights as well.
        pools: whether there is one more client, `POOL`, with all records.
        memory_limit_mb: what each process may take; None sets no limit.
    """
    data = {**data, POOL: pooled(data)} if pools else data
    several = fabric.world_size > 1
    shard = Shard(fabric, base_too) if several and parallelism == "data" else None
    local = LocalClients(on_own_device(fabric), module, data, training, clients_at_once, shard, memory_limit_mb)
    return SeveralProcesses(fabric, local, parallelism) if several else local
