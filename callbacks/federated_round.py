"""One federated round: snapshot → aggregate → cluster → mix. The only callback that changes the federation's state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from fl_lightning.aggregation.department import DepartmentStep, DPRelease, aggregate_department
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.aggregation.robust.krum import clients_needed
from fl_lightning.aggregation.updates import RoundUpdates, problem_with_update
from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.clustering import cluster_aware_average_selected
from fl_lightning.clustering.group_step import step_groups
from fl_lightning.clustering.rounds import ClusteringInputs, cluster_clients
from fl_lightning.config import FederationConfig
from fl_lightning.errors import RunError
from fl_lightning.evaluation.cross_loss import cross_losses, leave_one_out
from fl_lightning.federation.round_report import DepartmentReport, RoundReport
from fl_lightning.federation.state import FederationState, clients_by_department, mean_personal
from fl_lightning.linalg.adapter_algebra import concatenate_adapters, product_distance
from fl_lightning.linalg.approximation_error import averaging_error, result_error
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState, distance, norm, num_bytes, select
from fl_lightning.storage.offload import MAX_IN_MEMORY, OffloadFolder

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class FederatedRound(FederatedCallback):
    """Takes the clients' updates one by one and makes the next federation state of them.

    Args:
        config: the ``federation`` block; None takes that of the trainer.
        seed: the run seed; None takes that of the trainer. Clusterings draw from seeds hashed from it and the round.

    The trainer refuses a config or seed that differs from its own.
    """

    def __init__(self, config: FederationConfig | None = None, *, seed: int | None = None) -> None:
        self.config, self.seed = config, seed
        self._keep: Callable[[LoraState], Mapping[str, torch.Tensor]] = dict
        self._received = RoundUpdates()
        self._heard: list[str] = []
        self._clamped = False

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Many clients' states go to disk; an account of privacy is opened, or goes on."""
        if len(trainer.data) > MAX_IN_MEMORY:
            self._keep = OffloadFolder(trainer.run_folder).store
        if trainer.federation_config.guard.name == "dp" and trainer.federation.privacy is None:
            numbers, departments = trainer.federation_config.privacy, trainer.federation.departments
            ledger = Ledger.begin(departments, numbers.clip, numbers.noise_seed)
            trainer.federation = replace(trainer.federation, privacy=ledger)

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Forget the round before and count what goes down to the clients."""
        self._received, self._heard = RoundUpdates(self._keep), []
        departments = (
            {task.department for task in tasks} if trainer.policy.is_central else trainer.federation.departments
        )
        report = RoundReport(trainer.round_num, {d: DepartmentReport() for d in departments})
        sent = trainer.policy.shared_factor(trainer.round_num)
        down = sum(num_bytes(select(task.start, sent)) + num_bytes(task.frozen_product) for task in tasks)
        report.bytes_sent = {"client/up": 0, "client/down": 0 if trainer.policy.is_central else down}
        trainer.report = report

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Check an update and keep it for its department, or leave it out with the reason."""
        department, client = update.client_id.split("/", 1)
        report = trainer.report.departments[department]
        task = trainer.tasks[update.client_id]
        limit = trainer.federation_config.max_update_norm * norm(trainer.federation.initial)
        problem = problem_with_update(update, task, limit)
        if problem is not None:
            report.rejected[client] = problem
            log.warning("round %d: %s left out: %s", trainer.round_num, update.client_id, problem)
            return
        sends, sent = trainer.policy.shared_factor(trainer.round_num), trainer.report.bytes_sent
        shared = select(update.state, sends)
        if not trainer.policy.is_central:  # else records have travelled, and no adapter does
            sent[update.client_id] = num_bytes(shared)
            sent["client/up"] += num_bytes(shared)
        self._received.add(update, shared_factor=sends, private_factor=trainer.policy.private_factor)
        by_factors = trainer.federation_config.combiner not in KEEP_PRODUCTS and not trainer.policy.is_central
        origin = trainer.federation.departments[department] if by_factors else task.start
        report.residual_norms[client] = distance(shared, origin)

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """Steps 2 to 4 of a round: clients into departments, departments into clusters, mixing inside clusters."""
        config = trainer.federation_config
        self._received.sort(trainer.tasks)
        if config.guard.name == "dp":  # who answered must not show: a department that was asked releases its noise
            self._heard = sorted({task.department for task in trainer.tasks.values()})
        else:
            self._heard = self._large_enough(trainer)
        if not self._heard:
            raise RunError(
                f"round {trainer.round_num}: no valid update from enough clients of any department "
                f"(federation.min_clients: {config.min_clients}), guard {config.guard.name}; the state of "
                f"round {trainer.federation.round_num} stands. The log names each client's reason"
            )
        before = trainer.federation
        if trainer.policy.is_central:
            (own,) = (update.shared for update in self._received.values())
            after = replace(before, departments={department: dict(own) for department in before.departments})
        else:
            after = self._aggregate(before, trainer)
            after = replace(after, client_starts=self._client_clusters(after, trainer))
            after = self._mix(after, trainer)
        after = replace(after, round_num=trainer.round_num)
        after.check()
        trainer.federation = after
        self._received = RoundUpdates()

    def _large_enough(self, trainer: FederatedTrainer) -> list[str]:
        """Departments with enough valid updates; the others keep their state, as if nobody had been asked."""
        config = trainer.federation_config
        report = trainer.report
        guard, needed, key = (
            config.guard,
            config.min_clients,
            "federation.min_clients",
        )
        if guard.name in ("krum", "multi_krum") and clients_needed(guard.f) > needed:
            needed, key = clients_needed(guard.f), f"federation.guard: {guard.name} with f = {guard.f}"
        for department in self._received.departments:
            own, heard = report.departments[department], self._received.of(department)
            if len(heard) >= needed:
                continue
            problem = f"{len(heard)} valid updates in {department}, wanted {needed}"
            log.warning("round %d: %s (%s); its state stays", report.round_num, problem, key)
            self._received.drop(department)
            own.rejected.update(dict.fromkeys(own.residual_norms, problem))
            own.residual_norms = {}
        return self._received.departments

    def _aggregate(self, state: FederationState, trainer: FederatedTrainer) -> FederationState:
        """2a. Clients into departments, on what is sent; what clients keep is averaged for the export only."""
        report = trainer.report
        sent = trainer.policy.shared_factor(report.round_num)
        received = self._received
        examples = {**state.examples, **{c: update.stats.num_examples for c, update in received.items()}}
        personal = {**state.personal, **{c: update.private for c, update in received.items() if update.private}}
        ledger, clips = state.privacy, dict[str, float]()
        members, asked_of = clients_by_department(personal), clients_by_department(trainer.tasks)
        clients_of = clients_by_department(trainer.data)
        departments, server, products = dict(state.departments), dict(state.optimizer_states), dict(state.products)
        for department in self._heard:
            own, clients = report.departments[department], received.of(department)
            previous = select(state.departments[department], sent)
            updates = {c: update.shared for c, update in clients.items()}
            stats = {c: update.stats for c, update in clients.items()}
            memory, measured = state.optimizer_states.get(department, {}), {}
            asked = asked_of.get(department, [])
            if trainer.federation_config.weighting == "contribution":
                ids = clients_of[department]
                whole, without = leave_one_out(trainer.clients, ids, state.departments[department], updates, examples)
                measured = {"loss_with": whole, "loss_without": without}
            try:
                after = aggregate_department(
                    trainer.federation_config, report.round_num, previous, updates, stats, memory, measured,
                    product=state.products.get(department),
                    relative_scalings={c: trainer.tasks[c].relative_scaling for c in clients},
                    dp_release=None if ledger is None else DPRelease(
                        ledger.key_of(report.round_num, department), ledger.clips[department], len(asked)
                    ),
                )  # fmt: skip
            except ValueError as error:
                raise RunError(f"round {report.round_num}: {department}: {error}") from error
            departments[department] = {**state.departments[department], **after.state}
            if ledger is not None and after.clip is not None:
                own.clip, clips[department] = ledger.clips[department], after.clip
            elif trainer.policy.private_factor != "none":
                departments[department].update(mean_personal(personal, examples, members.get(department, ())))
            if after.optimizer_state:
                server[department] = after.optimizer_state
            if after.product:
                products[department] = after.product
            for client_id, reason in after.rejected.items():
                log.warning("round %d: %s left out: %s", report.round_num, client_id, reason)
            own.rejected.update(_without_department(after.rejected))
            self._measure(trainer, department, after)
        if ledger is not None:
            numbers = trainer.federation_config.privacy
            ledger = ledger.released((c for d in clips for c in asked_of[d]), clips)
            epsilons = ledger.epsilons(numbers.noise_multiplier, numbers.delta)
            for department in clips:
                report.departments[department].epsilon = epsilons[department]
        return replace(
            state, departments=departments, personal=personal, examples=examples, optimizer_states=server,
            products=products, privacy=ledger,
        )  # fmt: skip

    def _measure(self, trainer: FederatedTrainer, department: str, after: DepartmentStep) -> None:
        """How the department moved, and what its clients' coming together cost."""
        own, before = trainer.report.departments[department], trainer.federation
        own.weights, own.scaled = _without_department(after.weights), _without_department(after.scaled)
        own.step_size, own.rank_errors = after.step_size, _without_department(after.rank_errors)
        received = self._received.of(department)
        heard = {client_id: received[client_id].shared for client_id in after.weights}
        measured = trainer.federation_config.measure_error and bool(heard) and before.privacy is None
        if trainer.federation_config.combiner in KEEP_PRODUCTS:
            adapter = concatenate_adapters([after.state, after.product])
            own.moved = product_distance(adapter, before.adapter(department))
            if measured:
                whole = {client_id: trainer.tasks[client_id].adapter(state) for client_id, state in heard.items()}
                off = result_error(whole, after.weights, 1.0, adapter, 1.0)
                own.aggregation_error, own.layer_errors = off.overall, off.layers
            return
        own.moved = distance(after.state, before.departments[department])
        own.drift = {c: distance(after.state, received[f"{department}/{c}"].shared) for c in own.residual_norms}
        if measured and trainer.policy.shared_factor(trainer.round_num) == "all":
            off = averaging_error(heard, after.weights, 1.0)
            own.aggregation_error, own.layer_errors = off.overall, off.layers

    def _client_clusters(self, state: FederationState, trainer: FederatedTrainer) -> dict[str, LoraState]:
        """2b. Start states of the clients from their cluster inside the department."""
        report = trainer.report
        clusters, sent = trainer.federation_config.client_clusters, trainer.policy.shared_factor(report.round_num)
        if clusters.num_clusters == 1:
            return {}
        starts = dict(state.client_starts)
        for department in self._heard:
            rejected, updates = report.departments[department].rejected, self._received.of(department)
            clients = {c: update.shared for c, update in updates.items() if c.split("/", 1)[1] not in rejected}
            if len(clients) < clusters.num_clusters and not self._clamped:
                self._clamped = True
                log.info(
                    "federation.client_clusters.num_clusters %d is more than the clients of %s; clamped to %d",
                    clusters.num_clusters, department, len(clients),
                )  # fmt: skip
            seed = derive_seed(trainer.seed, "client_clusters", report.round_num, department)
            new, assignments = cluster_aware_average_selected(
                clients,
                {c: update.stats.num_examples for c, update in updates.items()},
                clusters.num_clusters,
                clusters.global_mix,
                global_state=select(state.departments[department], sent),
                assignments=cluster_clients(clusters, clients, trainer.federation.departments[department], seed=seed),
                seed=seed,
            )
            for client_id, start in new.items():
                before = starts.get(client_id, {})  # a round may send one factor only; the other's start stays
                starts[client_id] = start if before.keys() <= start.keys() else {**before, **start}
            report.departments[department].client_clusters = _without_department(assignments)
        return starts

    def _mix(self, state: FederationState, trainer: FederatedTrainer) -> FederationState:
        """3. and 4. Cluster the departments and pull each towards its cluster's example-weighted mean."""
        report = trainer.report
        # Only departments that trained in this round have a weight; the others keep their state, out of the means.
        # Under differential privacy all weigh the same: how many records a client has is its own affair.
        counts = state.department_examples()
        weights = {d: 1.0 if state.privacy else float(counts[d]) for d in counts if d in self._heard}
        try:
            step = step_groups(
                trainer.federation_config.dept_clusters,
                trainer.tree,
                {department: state.departments[department] for department in weights},
                weights,
                groups=state.groups,
                momentum=trainer.federation_config.hierarchy.momentum,
                previous=state.cluster_assignments,
                memory=state.clustering_memory,
                inputs=lambda members: self._clustering_inputs(trainer, state, members),
                seed=lambda group: derive_seed(trainer.seed, "dept_clusters", report.round_num, *filter(None, [group])),
            )
        except ValueError as error:
            raise RunError(f"round {report.round_num}: federation.dept_clusters: {error}") from error
        report.clusterings = step.clusterings
        for kind, travels in step.mixed_bytes.items():
            report.bytes_sent.update({f"{kind}/up": travels, f"{kind}/down": travels})
        groups = {name: step.states.pop(name) for name in trainer.tree.groups if name in step.states}
        return replace(
            state,
            departments={**state.departments, **step.states},
            groups={**state.groups, **groups},
            cluster_assignments={**state.cluster_assignments, **step.assignments} if step.clusterings else {},
            clustering_memory={**state.clustering_memory, **step.memory},
        )

    def _clustering_inputs(
        self, trainer: FederatedTrainer, state: FederationState, members: Mapping[str, LoraState]
    ) -> ClusteringInputs:
        """What the members of a group are compared by, as far as the config wants it."""
        clusters, losses = trainer.federation_config.dept_clusters, None
        owners = {department: member for member in members for department in trainer.tree.departments(member)}
        moves: dict[str, LoraState] = {}
        weights: dict[str, float] = {}
        if clusters.select == "dynamic":
            for client_id, update in self._received.items():
                department, client = client_id.split("/", 1)
                if department not in owners or client in trainer.report.departments[department].rejected:
                    continue
                start, member, sent = trainer.tasks[client_id].start, owners[department], update.shared
                whose = client_id if member == department else f"{member}/{department}.{client}"
                moves[whose] = {name: state.initial[name] + sent[name] - start[name] for name in sent}
                weights[whose] = float(update.stats.num_examples)
        if clusters.representation == "cross_loss":
            losses = cross_losses(trainer.clients, trainer.data, members, owners)
        return ClusteringInputs(members, state.initial, moves, weights, losses)


def _without_department(by_id: Mapping[str, Value]) -> dict[str, Value]:
    return {client_id.split("/", 1)[1]: value for client_id, value in by_id.items()}
