"""Evaluates the base model and the adapters of clients, departments and groups on held-out records."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.evaluation.departments import evaluate_departments, evaluate_groups, logged_metrics, summary
from fl_lightning.evaluation.metrics import MetricValues, compute_metrics
from fl_lightning.storage.run_layout import CLIENT_EVALUATION, EVALUATION

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientUpdate, Metrics
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)

_LARGEST = 3.4028234663852886e38
"""The largest finite number in fp32, in which some loggers keep figures."""


class Evaluation(FederatedCallback):
    """Writes ``federated_eval.json`` and ``client_eval_all_rounds.json`` and logs the metrics.

    A department's metrics are over all tokens of its clients' held-out records; ``eval/loss`` is the mean over
    departments, ``eval/loss_client_mean`` the unweighted mean over clients. Step 0 is the base model. Logged metrics
    are those of the round; under early stopping ``final`` in the file are those of each adapter's best round. Rounds
    and clients are those of the ``evaluation`` block.
    """

    wants_client_metrics = True

    def __init__(self) -> None:
        self.base: dict[str, MetricValues] = {}
        self.final: dict[str, MetricValues] = {}
        self.groups: dict[str, dict[str, MetricValues]] = {}
        self.rounds: dict[str, dict[str, dict[str, MetricValues]]] = {}

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Evaluate the base model: the initial adapter, whose B is zero."""
        trainer.panel.log()
        if not self.base:
            initial = dict.fromkeys(trainer.federation.departments, trainer.federation.initial)
            panel = trainer.panel
            self.base, _ = evaluate_departments(trainer.clients, panel.data, initial, panel.population)
            self.final = self.base
            initial = dict.fromkeys(trainer.tree.groups, trainer.federation.initial)
            groups = evaluate_groups(trainer.clients, panel.data, initial, trainer.tree, panel.population)
            self.groups = {group: {"base": values, "final": values} for group, values in groups.items()}
            self._log(trainer, self.base, groups)

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Log a client's metrics on its held-out records, unless its update was rejected."""
        department, client = update.client_id.split("/", 1)
        metrics = update.metrics
        if metrics is None or client in trainer.report.departments[department].rejected:
            return
        if not any(vars(metrics).values()):  # the client has no held-out records
            return
        values = _client_metrics(metrics)
        if values is None:
            log.warning("round %d: ignoring impossible metrics of %s: %s", update.round_num, update.client_id, metrics)
            return
        trainer.log({f"{update.client_id}/eval/{name}": value for name, value in values.items()})
        clients = self.rounds.setdefault(str(update.round_num), {}).setdefault(department, {})
        clients[client] = {**values, "num_examples": metrics.num_examples}

    def on_own_fit_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Log the metrics of a client's own adapter on its held-out records."""
        if update.metrics is not None and (values := _client_metrics(update.metrics)) is not None:
            trainer.log({f"{update.client_id}/own/eval/{name}": value for name, value in values.items()})

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Evaluate the departments' adapters and write both files."""
        if not trainer.is_evaluated(trainer.round_num):
            return
        results = trainer.journal.look_up(trainer.round_num, "evaluation")
        if results is None:
            adapters = {name: trainer.federation.adapter(name) for name in trainer.federation.departments}
            data, population = trainer.panel.data, trainer.panel.population
            groups = evaluate_groups(trainer.clients, data, trainer.federation.groups, trainer.tree, population)
            results = [*evaluate_departments(trainer.clients, data, adapters, population), groups]
            trainer.journal.note(trainer.round_num, "evaluation", results)
        departments, client_mean, groups = results
        best = trainer.federation.best
        taken_before = {name for name in best if best[name].round_num < trainer.round_num}
        measured = {name: self.final[name] if name in taken_before else departments[name] for name in departments}
        # Between buffered steps a department whose sites all train is not measured.
        self.final = {**self.final, **measured} if trainer.report.is_planned else measured
        for group, values in groups.items():
            before = self.groups.get(group, {"base": values, "final": values})
            self.groups[group] = before if group in taken_before else {**before, "final": values}
        self._log(trainer, departments, groups, client_mean)
        if trainer.run_folder is not None:
            trainer.writer.json(trainer.run_folder / EVALUATION, summary(self.base, self.final, self.groups))
            trainer.writer.json(trainer.run_folder / CLIENT_EVALUATION, {"rounds": self.rounds})

    def _log(
        self,
        trainer: FederatedTrainer,
        departments: Mapping[str, MetricValues],
        groups: Mapping[str, MetricValues],
        client_mean: float | None = None,
    ) -> None:
        if not departments:
            log.warning("round %d: no client evaluated an adapter", trainer.round_num)
        trainer.log(logged_metrics(departments, groups, client_mean))

    def state_dict(self) -> dict[str, Any]:
        """The base model's metrics and the newest ones."""
        return {"base": self.base, "final": self.final, "groups": self.groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them; checkpoints of older versions hold the metrics of all rounds as well."""
        self.base, self.final = state["base"], state["final"]
        self.groups, self.rounds = state.get("groups", {}), state.get("rounds", {})

    def round_record(self, round_num: int) -> dict[str, dict[str, MetricValues]] | None:
        """Metrics of the clients in a round: {department: {client: metrics}}."""
        return self.rounds.get(str(round_num))

    def load_round_records(self, records: Mapping[int, Any]) -> None:
        """Take those of earlier rounds."""
        self.rounds = {str(round_num): departments for round_num, departments in records.items()}


def _client_metrics(metrics: Metrics) -> MetricValues | None:
    """Loss, perplexity and accuracy from a client's sums; None if one is not finite, or a mean is not in fp32."""
    sums = vars(metrics).values()
    # Compared, not converted: a float cannot hold every integer.
    if any(not isinstance(v, (int, float)) or not abs(v) <= sys.float_info.max for v in sums) or metrics.num_tokens < 1:
        return None
    values = compute_metrics(metrics)
    return values if all(abs(values[name]) <= _LARGEST for name in ("loss", "token_accuracy")) else None
