"""The federated run: rounds of client fits, with hooks between them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from fl_lightning import signals
from fl_lightning.aggregation.sharing import SharePolicy, share_policy
from fl_lightning.callbacks.base import FederatedCallback, check_state_keys
from fl_lightning.callbacks.federated_round import FederatedRound, agreed
from fl_lightning.clustering.tree import NO_GROUPS, Tree
from fl_lightning.config import EvaluationConfig, FederationConfig, LoraConfig, PersonalConfig, RunConfig
from fl_lightning.config.compatibility import check_compatible, check_own_adapters
from fl_lightning.config.training import TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import RunError
from fl_lightning.evaluation.panel import EvaluationPanel
from fl_lightning.federation.fit_buffers import RoundPlan, RoundSchedule
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTask, ClientTransport
from fl_lightning.federation.round_report import RoundReport
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.loggers.distributions import MAX_CLIENTS, client_distributions
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.module import LoraClientModule
from fl_lightning.storage.background_writer import BackgroundWriter
from fl_lightning.training.client_tasks import round_tasks
from fl_lightning.training.clients import make_clients
from fl_lightning.training.own_adapters import own_tasks
from fl_lightning.training.round_schedule import make_schedule
from fl_lightning.training.worker_processes import WorkerProcesses

log = logging.getLogger(__name__)


class FederatedTrainer:
    """Runs federated rounds and calls the callbacks' hooks.

    Args:
        fabric: Lightning Fabric, with its loggers; None makes one on the best device.
        callbacks: in the order in which their hooks run; a `FederatedRound` is moved to the front, or added.
        federation: the ``federation`` block; None takes that of the `FederatedRound`, or the defaults.
        training: the ``training`` block for the clients of this process; None takes the defaults with the module's
            learning rate and weight decay.
        lora: the ``lora`` block, for its profiles; None gives every client the model's own rank and scaling.
        personal: the ``personal`` block, for the clients' own adapters; None trains none.
        evaluation: the ``evaluation`` block; None takes the defaults.
        seed: the run seed; None takes that of the `FederatedRound`, or the default.
        run_folder: in which callbacks write through `writer`; None writes nothing.

    Raises:
        ValueError: if there are two `FederatedRound`, if the one there has another config or seed than the trainer, or
            if two callbacks would write their state under one key.
        InputError: if `federation`, `lora` or `personal` combine choices that are incompatible.

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
        personal: PersonalConfig | None = None,
        evaluation: EvaluationConfig | None = None,
        seed: int | None = None,
        run_folder: Path | None = None,
    ) -> None:
        rounds = [callback for callback in callbacks if isinstance(callback, FederatedRound)]
        if len(rounds) > 1:
            raise ValueError(
                f"callbacks: expected at most one FederatedRound, since one alone writes the state, got {len(rounds)}"
            )
        writer = rounds[0] if rounds else FederatedRound()
        self.federation_config = agreed("federation", federation, writer.config) or FederationConfig()
        run_seed = agreed("seed", seed, writer.seed)
        self.seed = RunConfig.seed if run_seed is None else run_seed
        self.training = training
        self.lora = lora or LoraConfig()
        self.personal = personal or PersonalConfig()
        self.evaluation = evaluation or EvaluationConfig()
        check_compatible(self.federation_config, self.lora)
        check_own_adapters(self.personal, self.federation_config, self.lora)
        self.run_folder = run_folder
        self.fabric = fabric or Fabric(accelerator="auto", devices=1)
        self.callbacks: list[FederatedCallback] = [writer, *(c for c in callbacks if c is not writer)]
        check_state_keys(self.callbacks)
        self.writer = BackgroundWriter()
        self.round_num = 0
        self.tasks: dict[str, ClientTask] = {}
        self.own_tasks: dict[str, ClientTask] = {}
        self.data: Mapping[str, ClientData] = {}
        self.panel = EvaluationPanel({}, {})
        self.history: list[tuple[int, dict[str, float]]] = []
        self._row: dict[str, float] = {}
        self.tree = NO_GROUPS
        self.schedule: RoundSchedule | None = None
        self.plan: RoundPlan | None = None
        self.federation: FederationState
        self.report: RoundReport
        self.module: LoraClientModule
        self.clients: ClientTransport

    @property
    def policy(self) -> SharePolicy:
        """Which factors are trained, shared and kept by the clients."""
        return share_policy(self.federation_config.share, self.federation_config.share_layers)

    def fit(
        self,
        module: LoraClientModule,
        datamodule: Any,
        *,
        clients: ClientTransport | None = None,
        resume_from: FederationState | None = None,
        history: Sequence[tuple[int, Mapping[str, float]]] = (),
        continued_loggers: Collection[Any] = (),
        journal: Journal | None = None,
        places: Sequence[str] | None = None,
    ) -> FederationState:
        """Run the rounds.

        Args:
            module: around the PEFT model; its adapter is the common start.
            datamodule: a `FederatedDataModule`, or {client_id: ClientData}.
            clients: train and evaluate; None takes the clients in this process.
            resume_from: the state after the last complete round.
            history: the rows logged before; they are logged again, since most loggers of a resumed run start empty.
            continued_loggers: loggers that have these rows; they only get the last one again, in case it was lost.
            journal: keeps the results of a round until its checkpoint is written; None keeps nothing.
            places: ids from which rounds sample clients, if some are not in the data; a round goes without them.

        Returns:
            The state after the last round.

        Raises:
            RunError: if a round gets no valid update.
            InputError: if a profile or a group names a client or department that is not in the data.
            ValueError: if `training` and the module were given different rates.
        """
        self.module = module
        self.journal = journal or Journal(None, self.writer)
        self.data = datamodule if isinstance(datamodule, Mapping) else datamodule.federation()
        self.fabric.launch()
        self.lora.check_names(places or self.data)
        self.clients = clients or self._make_clients()
        self._clients_of = clients_by_department(self.data if places is None else places)
        departments = self._clients_of.keys()
        self.panel = EvaluationPanel.draw(self.data, self.evaluation, self.seed)
        self.tree = Tree.of(self.federation_config.hierarchy.groups, departments)
        if resume_from is None:
            resume_from = FederationState.begin(collect_lora_state(module.model), departments, self.tree.groups)
        self.federation = resume_from
        self.federation.check()
        self.policy.check_layers(self.federation.initial)
        self.round_num = self.federation.round_num
        self.report = RoundReport(self.round_num)
        training = self.training or TrainingConfig()
        self.schedule = make_schedule(self.federation_config, training, self.data, self.federation, self.seed)
        if isinstance(self.clients, WorkerProcesses) and self.fabric.global_rank > 0:
            names, states = sorted(departments), self.clients.serve()
            products = dict(zip(names, states[len(names) :], strict=True))
            return replace(
                self.federation,
                departments=dict(zip(names, states[: len(names)], strict=True)),
                products={name: product for name, product in products.items() if product},
            )
        with signals.at_safe_points():
            self._run(history, continued_loggers)
        if isinstance(self.clients, WorkerProcesses):
            factors = [self.federation.departments[name] for name in sorted(departments)]
            self.clients.stop([*factors, *(self.federation.products.get(name, {}) for name in sorted(departments))])
        return self.federation

    def _make_clients(self) -> ClientTransport:
        module = self.module
        training = self.training or TrainingConfig(learning_rate=module.learning_rate, weight_decay=module.weight_decay)
        return make_clients(self.fabric, module, self.data, training, is_central=self.policy.is_central)

    def _run(self, history: Sequence[tuple[int, Mapping[str, float]]], continued_loggers: Collection[Any]) -> None:
        error: BaseException | None = None
        try:
            for number, (step, row) in enumerate(history, start=1):
                self.log(row)
                self._flush_row(step, without=continued_loggers if number < len(history) else ())
            self._call("on_federation_start")
            self._flush_row(self.round_num)
            for round_num in range(self.round_num + 1, self.federation_config.rounds + 1):
                self._run_round(round_num)
            self.writer.flush()
            self._call("on_federation_end")
        except BaseException as caught:
            error = caught
        closes: list[Callable[[], None]] = [partial(c.on_federation_close, trainer=self) for c in self.callbacks]
        for close in (*closes, self.writer.close):  # all of them: the writer's thread would keep the process alive
            try:
                close()
            except BaseException as caught:
                if error is not None and caught is not error:
                    log.error("another error while closing: %s: %s", type(caught).__name__, caught)
                error = error or caught
        if error is not None:
            raise error

    def is_evaluated(self, round_num: int) -> bool:
        """Whether adapters are evaluated after a round: every n-th one, and the last."""
        return round_num % self.evaluation.every == 0 or round_num == self.federation_config.rounds

    def _run_round(self, round_num: int) -> None:
        self.round_num = round_num
        self.plan = None if self.schedule is None else self.schedule.next_round()
        tasks = round_tasks(
            self.federation_config,
            self.lora,
            self.federation,
            self._clients_of,
            round_num=round_num,
            seed=self.seed,
            evaluate=self.is_evaluated(round_num) and any(callback.wants_client_metrics for callback in self.callbacks),
            plan=self.plan,
            present=self.data,
        )
        own = own_tasks(self.personal, self.federation, tasks)
        self.tasks, self.own_tasks = ({task.client_id: task for task in some} for some in (tasks, own))
        self._call("on_round_start", tasks=tasks)
        expected = {(task.client_id, task.is_own) for task in (*tasks, *own)}
        for update in self.clients.fit([*tasks, *own], self._on_step, self.journal):
            key = (update.client_id, update.is_own)
            if key not in expected or update.round_num != round_num:
                log.warning("round %d: ignoring an update of %r that was not asked for", round_num, update.client_id)
                continue
            expected.remove(key)
            self._call("on_own_fit_end" if update.is_own else "on_client_end", update=update)
        self.writer.flush()  # the round before is on disk when this one ends
        try:
            self._call("on_aggregate")
        except RunError:
            self.journal.truncate(round_num)  # else a resumed run would replay the same updates
            raise
        self.tasks, self.own_tasks = {}, {}  # they hold the states that the clients started from
        self._call("on_round_end")
        self._flush_row(round_num)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Collect metrics for the loggers, which get them as one row at the end of the round; its number is the step.

        Values that are not finite, such as the loss of a client that diverged, are logged as warnings and left out.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - finite.keys():
            log.warning("round %d: %s is %s", self.round_num, name, metrics[name])
        self._row.update(finite)

    def _flush_row(self, step: int, without: Collection[Any] = ()) -> None:
        if self._row:
            row, self._row = self._finished_row(), {}
            self.history.append((step, row))
            self.writer.submit(lambda: self._write_row(step, row, without))

    def _write_row(self, step: int, row: dict[str, float], without: Collection[Any]) -> None:
        for logger in (logger for logger in self.fabric.loggers if logger not in without):
            logger.log_metrics(metrics=row, step=step)
            if hasattr(logger, "save"):  # else CSV rows would wait for a hundred more
                logger.save()

    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of every row so far, including the unfinished one of this round."""
        return [*self.history, *([(self.round_num, self._finished_row())] if self._row else [])]

    def _finished_row(self) -> dict[str, float]:
        """The metrics collected so far; those of clients as distributions if there are many clients."""
        return client_distributions(self._row, self.data) if len(self.data) > MAX_CLIENTS else dict(self._row)

    def _on_step(self, client_ids: Sequence[str], share: float, tokens: int) -> None:
        signals.check()
        self._call("on_step_end", client_ids=client_ids, share=share, tokens=tokens)

    def _call(self, hook: str, **arguments: Any) -> None:
        for callback in self.callbacks:
            signals.check()
            getattr(callback, hook)(trainer=self, **arguments)
