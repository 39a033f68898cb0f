"""The step of all departments in one round, and what the federation knows of its clients after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from fl_lightning.aggregation.department import DepartmentStep, aggregate_department
from fl_lightning.aggregation.diagnostics import describe_step
from fl_lightning.aggregation.private import DPRelease, aggregate_privately
from fl_lightning.aggregation.secure import aggregate_securely, equal_parts, step_to_mean
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.aggregation.updates import ReceivedUpdate, RoundUpdates
from fl_lightning.config import FederationConfig
from fl_lightning.errors import RunError
from fl_lightning.federation.personal_mean import RunningSum, mean_personal, next_sums
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.round_report import RoundReport
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.privacy.ledger import Ledger

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.session import SecureMean

log = logging.getLogger(__name__)

Measure: TypeAlias = Callable[[str, Mapping[str, Mapping[str, torch.Tensor]], Mapping[str, int]], Mapping[str, Any]]
"""From a department, {client_id: update} and {client_id: num_examples} to what ``weighting: contribution`` needs."""


def aggregate_departments(
    config: FederationConfig,
    state: FederationState,
    departments: Sequence[str],
    updates: RoundUpdates,
    tasks: Mapping[str, ClientTask],
    report: RoundReport,
    masked_sums: Mapping[str, SecureMean] | None = None,
    *,
    measure: Measure,
    seed: int = 0,
) -> FederationState:
    """The state after each department has aggregated its clients' updates.

    Args:
        config: the ``federation`` block.
        state: before the round.
        departments: that aggregate; the others keep their state.
        updates: the valid ones.
        tasks: {client_id: task} of the round.
        report: of the round; completed here.
        masked_sums: {department: its masked sum}, if clients elsewhere have sent no updates but masked ones.
        measure: called for each department under ``weighting: contribution``.
        seed: of the run, for the secrets of secure aggregation.

    Raises:
        RunError: if a department's updates cannot be aggregated as configured.
    """
    policy, ledger = share_policy(config.share, config.share_layers), state.privacy
    examples = dict(state.examples)
    if not config.secure_aggregation:
        examples.update({c: update.stats.num_examples for c, update in updates.items()})
    personal = {**state.personal, **{c: update.private for c, update in updates.items() if update.private}}
    personal_clients, asked = clients_by_department(personal), clients_by_department(tasks)
    sums: dict[str, RunningSum] = {}
    if ledger is None:  # a mean of what clients keep would not be private
        kept = [client_id for client_id, update in updates.items() if update.private]
        before = state.personal, state.examples
        sums = next_sums(state.personal_sums, before, (personal, examples), kept, personal_clients)
    next_states, products, optimizer_states = (
        dict(state.departments),
        dict(state.products),
        dict(state.optimizer_states),
    )
    clips: dict[str, float] = {}
    for name in departments:
        received = updates.of(name)
        try:
            if masked_sums is not None:
                previous = policy.shared(state.departments[name], report.round_num)
                moments = state.optimizer_states.get(name, {})
                step = step_to_mean(config, report.round_num, previous, masked_sums[name], moments)
            else:
                step = _step(config, state, name, received, tasks, asked.get(name, ()), report, measure, examples, seed)
        except ValueError as error:
            raise RunError(f"round {report.round_num}: {name}: {error}") from error
        next_states[name] = {**state.departments[name], **step.state}
        if step.optimizer_state:
            optimizer_states[name] = step.optimizer_state
        if step.product:
            products[name] = step.product
        if step.clip is not None:
            clips[name] = step.clip
        elif policy.keeps_private:  # for the exported adapter only: the clients keep their own
            anew = name not in sums
            mean = mean_personal(personal, examples, personal_clients.get(name, ())) if anew else sums[name].mean()
            next_states[name].update(mean)
        if step.masked is not None:
            examples.update(equal_parts(step.masked.weight, step.masked.clients))
            report.count_masked(name, step.masked)
        for client_id, reason in step.rejected.items():
            log.warning("round %d: rejecting the update of %s: %s", report.round_num, client_id, reason)
        describe_step(
            report.departments[name], config, name, step,
            before=state, updates=received, tasks=tasks, shared_factor=policy.shared_factor(report.round_num),
        )  # fmt: skip
    if ledger is not None:
        ledger = _account(ledger, clips, asked, config, report)
    return replace(
        state,
        departments=next_states,
        personal=personal,
        personal_sums=sums,
        examples=examples,
        optimizer_states=optimizer_states,
        products=products,
        privacy=ledger,
    )


def _step(
    config: FederationConfig,
    state: FederationState,
    name: str,
    received: Mapping[str, ReceivedUpdate],
    tasks: Mapping[str, ClientTask],
    asked: Sequence[str],
    report: RoundReport,
    measure: Measure,
    examples: Mapping[str, int],
    seed: int,
) -> DepartmentStep:
    """A department's step: under differential privacy, from a masked sum, or from the updates themselves."""
    shared = {client_id: update.shared for client_id, update in received.items()}
    stats = {client_id: update.stats for client_id, update in received.items()}
    previous = share_policy(config.share, config.share_layers).shared(state.departments[name], report.round_num)
    optimizer_state = state.optimizer_states.get(name, {})
    if config.secure_aggregation:
        noise_key = "" if state.privacy is None else state.privacy.key_of(report.round_num, name)
        return aggregate_securely(
            config, report.round_num, previous, shared, stats, optimizer_state,
            department=name, asked=len(asked), seed=seed, noise_key=noise_key,
        )  # fmt: skip
    if state.privacy is not None:
        release = _release(state.privacy, report.round_num, name, len(asked))
        return aggregate_privately(config, report.round_num, previous, shared, optimizer_state, release)
    return aggregate_department(
        config,
        report.round_num,
        previous,
        shared,
        stats,
        optimizer_state,
        measure(name, shared, examples) if config.weighting == "contribution" else {},
        product=state.products.get(name),
        relative_scalings={client_id: tasks[client_id].relative_scaling for client_id in received},
    )


def _release(ledger: Ledger, round_num: int, department: str, asked: int) -> DPRelease:
    """The inputs of a private step."""
    return DPRelease(ledger.key_of(round_num, department), ledger.clips[department], asked)


def _account(
    ledger: Ledger,
    clips: Mapping[str, float],
    asked: Mapping[str, Sequence[str]],
    config: FederationConfig,
    report: RoundReport,
) -> Ledger:
    """The ledger after the departments of `clips` have released; their cost so far goes into the report."""
    after = ledger.released((client_id for name in clips for client_id in asked[name]), clips)
    privacy = config.privacy
    epsilons = after.epsilons(privacy.noise_multiplier, privacy.delta, in_shares=config.secure_aggregation)
    for name in clips:
        report.departments[name].clip, report.departments[name].epsilon = ledger.clips[name], epsilons[name]
    return after
