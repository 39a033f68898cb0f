"""One federated round: snapshot → aggregate → cluster → mix, then early stopping and mixtures of predictions.

The only callback that changes the federation's state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from fl_lightning import clustering, mixing
from fl_lightning.aggregation import secure
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.aggregation.quorum import departments_to_aggregate
from fl_lightning.aggregation.round_step import aggregate_departments
from fl_lightning.aggregation.staleness import rebase, staleness_weight
from fl_lightning.aggregation.updates import RoundUpdates, problem_with_update, unchanged
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.clustering.group_step import step_groups
from fl_lightning.clustering.rounds import cluster_clients, cluster_round
from fl_lightning.config import FederationConfig
from fl_lightning.errors import RunError
from fl_lightning.evaluation.clustering_inputs import collect_clustering_inputs
from fl_lightning.evaluation.cross_loss import contribution_measure
from fl_lightning.evaluation.department_mixtures import fit_mixtures, levels_of
from fl_lightning.evaluation.early_stopping import keep_best_rounds
from fl_lightning.federation.round_report import DepartmentReport, RoundReport, by_client
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.own_mixture import factors_of
from fl_lightning.loggers.distributions import MAX_CLIENTS
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState, distance, norm, num_bytes
from fl_lightning.storage.offload import MAX_IN_MEMORY, OffloadFolder
from fl_lightning.training.round_schedule import describe_plan

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class FederatedRound(FederatedCallback):
    """Collects the clients' updates of a round and computes the next state of the federation from them.

    Args:
        config: the ``federation`` block; None takes that of the trainer.
        seed: the run seed; None takes that of the trainer. Clusterings draw from seeds hashed from it and the round.
        take_rounds: {name as in `FederationState.best`: round to take}; None lets early stopping choose, if it is on.

    The trainer refuses a config or seed that differs from its own.
    """

    def __init__(
        self,
        config: FederationConfig | None = None,
        *,
        seed: int | None = None,
        take_rounds: Mapping[str, int] | None = None,
    ) -> None:
        self.config, self.seed, self.take_rounds = config, seed, take_rounds
        self._keep: Callable[[LoraState], Mapping[str, torch.Tensor]] = dict
        self._updates = RoundUpdates()
        self._own_adapters: dict[str, Mapping[str, torch.Tensor]] = {}
        self._logged_clamp = False

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Send the states of many clients to disk; open the ledger of differential privacy."""
        if len(trainer.data) > MAX_IN_MEMORY:
            self._keep = OffloadFolder(trainer.run_folder).store
        config = trainer.federation_config
        if config.guard.name == "dp" and trainer.federation.privacy is None:
            ledger = Ledger.begin(trainer.federation.departments, config.privacy.clip, config.privacy.noise_seed)
            trainer.federation = replace(trainer.federation, privacy=ledger)

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Begin the report of the round, with the bytes that go down to the clients."""
        self._updates, self._own_adapters = RoundUpdates(self._keep), {}
        policy = trainer.policy
        is_buffered = trainer.federation_config.schedule.mode == "buffered"
        only_asked = policy.is_central or is_buffered
        departments = {task.department for task in tasks} if only_asked else trainer.federation.departments
        if trainer.plan is None:
            trainer.federation_config.schedule.check_in_one_process()
        trainer.report = RoundReport(trainer.round_num, {name: DepartmentReport() for name in departments})
        if trainer.plan is not None:
            log.info("%s", describe_plan(trainer.plan, is_buffered=is_buffered))
            seconds = trainer.plan.seconds
            trainer.report.virtual_hours = None if seconds is None else seconds / 3600
            trainer.report.dropped = list(trainer.plan.dropped)
            trainer.report.staleness = {fit.client_id: fit.staleness for fit in trainer.plan.fits.values()}
        sent = (policy.shared(task.start, trainer.round_num) for task in tasks)
        down = sum(map(num_bytes, sent)) + sum(num_bytes(task.frozen_product) for task in tasks)
        if trainer.personal.uses_fedalt:
            down += sum(num_bytes(task.frozen_product) for task in trainer.own_tasks.values())
        trainer.report.bytes_sent = {"client/up": 0, "client/down": 0 if policy.is_central else down}

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Snapshot: keep a valid update for its department, or reject it with the reason."""
        config, policy, task = trainer.federation_config, trainer.policy, trainer.tasks[update.client_id]
        department, client = update.client_id.split("/", 1)
        report, bytes_sent = trainer.report.departments[department], trainer.report.bytes_sent
        if problem := self._problem_with(trainer, update, task):
            log.warning("round %d: rejecting the update of %s: %s", trainer.round_num, update.client_id, problem)
            if not config.noise_in_shares:
                report.rejected[client] = problem
                return
            update = unchanged(update, trainer.federation.departments[department])  # to stay away would tell of records
        shared = policy.shared(update.state, trainer.round_num)
        trainer.report.num_tokens += update.num_tokens
        if config.secure_aggregation:  # nobody but the client sees more of its update; its bytes are those of masks
            self._updates.add(update, policy)
            return
        if not policy.is_central:  # there, records have traveled instead of adapters
            bytes_sent[update.client_id] = num_bytes(shared)
            bytes_sent["client/up"] += num_bytes(shared)
        if task.started_round is not None:
            shared = self._rebased(trainer, task, shared)
            update = replace(update, state={**update.state, **shared})
        self._updates.add(update, policy)
        averages_factors = config.combiner not in KEEP_PRODUCTS and not policy.is_central
        origin = trainer.federation.departments[department] if averages_factors else task.start
        report.residual_norms[client] = distance(shared, origin)

    def on_own_fit_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Keep a client's own adapter, which goes on from the one before if the fit failed."""
        if problem := self._problem_with(trainer, update, trainer.own_tasks[update.client_id]):
            log.warning(
                "round %d: dropping the fit of %s's own adapter: %s", trainer.round_num, update.client_id, problem
            )
            return
        trainer.report.num_tokens += update.num_tokens
        self._own_adapters[update.client_id] = self._keep(update.state)
        if trainer.personal.uses_fedalt:
            trainer.report.bytes_sent["client/up"] += num_bytes(factors_of(update.state))

    def _rebased(self, trainer: FederatedTrainer, task: ClientTask, shared: LoraState) -> LoraState:
        """What a late client shares, as a change of its department's newest state."""
        name, age = trainer.federation_config.schedule.staleness, trainer.report.staleness[task.client_id]
        return rebase(shared, task.start, trainer.federation.departments[task.department], staleness_weight(name, age))

    def _problem_with(self, trainer: FederatedTrainer, update: ClientUpdate, task: ClientTask) -> str | None:
        config = trainer.federation_config
        problem = problem_with_update(update, task, config.max_update_norm * norm(trainer.federation.initial))
        if problem or not config.secure_aggregation or task.is_own:
            return problem
        shared = trainer.policy.shared(update.state, trainer.round_num)
        stats = ClientStats(update.num_examples, update.num_tokens)
        return secure.problem_with_input(config, shared, trainer.federation.departments[task.department], stats)

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """Aggregate the clients into departments, cluster clients and departments, mix within clusters."""
        self._updates.sort(trainer.tasks)
        config, state, tasks, report = trainer.federation_config, trainer.federation, trainer.tasks, trainer.report
        sums = getattr(trainer.clients, "masked_sums", None)  # of clients on other machines
        departments = departments_to_aggregate(config, self._updates, tasks.values(), report, sums)
        if trainer.policy.is_central:
            (update,) = self._updates.values()
            state = replace(state, departments={name: dict(update.shared) for name in state.departments})
        else:
            measure = contribution_measure(trainer.clients, trainer.panel.data, state.departments)
            # → department.aggregate_department → flora.flora_weighted_aggregate
            state = aggregate_departments(
                config, state, departments, self._updates, tasks, report, sums, measure=measure, seed=trainer.seed
            )
            report.aggregated = state.departments
            # → clustering.cluster_aware_average_selected
            state = self._cluster_clients(trainer, state, departments)
            # → rounds.cluster_round → clustering.department_level_clustering, then mixing.mix_with_cluster_average
            if config.schedule.mode == "buffered":  # all that have stepped since the start
                departments = [name for name, count in state.department_examples().items() if count]
            if departments and config.schedule.clusters_in(trainer.round_num, len(state.departments)):
                state = self._cluster_and_mix(trainer, state, departments)
        own_adapters = {**state.own_adapters, **self._own_adapters}
        in_use = trainer.schedule.versions_in_use() if trainer.schedule is not None else ()
        past = {f"{name}/{r}": trainer.federation.version(name, r) for name, r in in_use if r < trainer.round_num}
        state = replace(state, round_num=trainer.round_num, own_adapters=own_adapters, past=dict(sorted(past.items())))
        state.check()
        stops_early = trainer.training is not None and trainer.training.early_stopping
        if self.take_rounds is not None or (stops_early and trainer.is_evaluated(trainer.round_num)):
            # → early_stopping.keep_best_rounds
            state, metrics = keep_best_rounds(
                state, trainer.clients, trainer.data, trainer.tree, take_rounds=self.take_rounds,
                panel=trainer.panel.data, trained=tasks if len(trainer.data) > MAX_CLIENTS else None,
            )  # fmt: skip
            trainer.log(metrics)
        if config.dept_clusters.mixes_predictions and trainer.is_evaluated(trainer.round_num):
            state = self._fit_mixtures(trainer, state)
        trainer.federation = state
        self._updates, self._own_adapters = RoundUpdates(), {}

    def _fit_mixtures(self, trainer: FederatedTrainer, state: FederationState) -> FederationState:
        """4 under ``mix: predictions``: states stay as they are, and each department weighs the levels' predictions."""
        levels, bytes_sent = levels_of(state), trainer.report.bytes_sent
        bytes_sent["department/up"] = sum(num_bytes(adapters["department"]) for adapters in levels.values())
        bytes_sent["department/down"] = sum(
            num_bytes(adapter)
            for adapters in levels.values()
            for level, adapter in adapters.items()
            if level != "department"
        )
        # → mixture.fit_weights
        weights = fit_mixtures(trainer.clients, trainer.panel.data, levels, trainer.personal.prior)
        return replace(state, mixtures=weights)

    def _cluster_clients(
        self, trainer: FederatedTrainer, state: FederationState, departments: Sequence[str]
    ) -> FederationState:
        """2b: the start states of clients, from their clusters inside the department."""
        config, report = trainer.federation_config.client_clusters, trainer.report
        if config.num_clusters == 1:
            return replace(state, client_starts={})
        starts = dict(state.client_starts)
        for name in departments:
            received, rejected = self._updates.of(name), report.departments[name].rejected
            states = {c: update.shared for c, update in received.items() if c.split("/", 1)[1] not in rejected}
            if len(states) < config.num_clusters and not self._logged_clamp:
                self._logged_clamp = True
                log.info(
                    "federation.client_clusters.num_clusters %d is more than the clients of %s; clamped to %d",
                    config.num_clusters, name, len(states),
                )  # fmt: skip
            seed = derive_seed(trainer.seed, "client_clusters", report.round_num, name)
            cluster_starts, assignments = clustering.cluster_aware_average_selected(
                states,
                {client_id: received[client_id].stats.num_examples for client_id in states},
                config.num_clusters,
                config.global_mix,
                global_state=trainer.policy.shared(state.departments[name], report.round_num),
                assignments=cluster_clients(config, states, trainer.federation.departments[name], seed=seed),
                seed=seed,
            )
            for client_id, start in cluster_starts.items():
                before = starts.get(client_id, {})  # a round may share one factor only; the other keeps its start
                starts[client_id] = start if before.keys() <= start.keys() else {**before, **start}
            report.departments[name].client_clusters = by_client(assignments)
        return replace(state, client_starts=starts)

    def _cluster_and_mix(
        self, trainer: FederatedTrainer, state: FederationState, departments: Sequence[str]
    ) -> FederationState:
        """3 and 4: cluster the departments and pull each towards its cluster's mean; then the groups above them."""
        config, report, tree = trainer.federation_config, trainer.report, trainer.tree
        aggregated, examples = set(departments), state.department_examples()
        # Under differential privacy all departments weigh the same: the clients' numbers of records are private.
        weights = {d: 1.0 if state.privacy else float(n) for d, n in examples.items() if d in aggregated}
        inputs = partial(
            collect_clustering_inputs, config.dept_clusters, initial=state.initial, tree=tree, updates=self._updates,
            tasks=trainer.tasks, report=report, clients=trainer.clients, data=trainer.panel.data,
        )  # fmt: skip
        try:
            step = step_groups(
                config.dept_clusters,
                tree,
                {department: state.departments[department] for department in weights},
                weights,
                groups=state.groups,
                momentum=config.hierarchy.momentum,
                previous=state.cluster_assignments,
                memory=state.clustering_memory,
                inputs=inputs,
                seed=lambda group: derive_seed(trainer.seed, "dept_clusters", report.round_num, *filter(None, [group])),
                cluster=cluster_round,
                mix=mixing.mix_with_cluster_average,
            )
        except ValueError as error:
            raise RunError(f"round {report.round_num}: federation.dept_clusters: {error}") from error
        report.clusterings = step.clusterings
        for kind, num in step.mixed_bytes.items():
            report.bytes_sent.update({f"{kind}/up": num, f"{kind}/down": num})
        groups = {name: step.states.pop(name) for name in tree.groups if name in step.states}
        return replace(
            state,
            departments={**state.departments, **step.states},
            groups={**state.groups, **groups},
            cluster_assignments={**state.cluster_assignments, **step.assignments} if step.clusterings else {},
            clustering_memory={**state.clustering_memory, **step.memory},
        )


def agreed(name: str, value: Value | None, of_round: Value | None) -> Value | None:
    """The value that the trainer or its `FederatedRound` was given.

    Raises:
        ValueError: if both were given one, and not the same.
    """
    if value is not None and of_round is not None and value != of_round:
        raise ValueError(
            f"{name}: expected one for FederatedTrainer and its FederatedRound, got two that differ; give it to the "
            "trainer only"
        )
    return of_round if value is None else value
