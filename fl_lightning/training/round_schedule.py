"""The schedule of a run: which clients a round takes, if that depends on how fast they are in virtual time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import FederationConfig, TrainingConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.federation.client_profiles import ClientProfile, client_profiles
from fl_lightning.federation.fit_buffers import RoundPlan, RoundSchedule
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.federation.virtual_time import BufferedRounds, SynchronousRounds
from fl_lightning.state import LoraState, num_bytes
from fl_lightning.training.client_sampling import num_sampled, sample_clients


def make_schedule(
    config: FederationConfig,
    training: TrainingConfig,
    data: Mapping[str, ClientData],
    state: FederationState,
    seed: int,
) -> RoundSchedule | None:
    """The rounds of a run in virtual time, from that of a state on; None if its clients have no speed.

    Args:
        config: the ``federation`` block.
        training: the ``training`` block.
        data: {client_id: records}; the tokens of those that are asked are counted.
        state: from which the run starts or resumes.
        seed: the run seed.

    Raises:
        InputError: if the state lacks what clients in flight have started from, or a trace cannot be used.
    """
    if config.schedule.clients.speed is None:
        return None
    policy = share_policy(config.share, config.share_layers)
    sent = num_bytes(policy.shared(state.initial, 1))
    schedule = _new_schedule(config, data, training.local_epochs, 2 * sent, seed)
    for _ in range(state.round_num):
        schedule.next_round()
    stored = {(name, state.round_num) for name in state.departments} | state.past_versions()
    if missing := sorted(schedule.versions_in_use() - stored):
        department, version = missing[0]
        raise InputError(
            f"federation.schedule: expected a checkpoint with the state of {department} after round {version}, from "
            "which clients in flight have started, got one without; it is of another schedule: start a new run"
        )
    return schedule


def _new_schedule(
    config: FederationConfig, data: Mapping[str, ClientData], local_epochs: int, num_bytes_sent: int, seed: int
) -> RoundSchedule:
    schedule = config.schedule
    profile_of = client_profiles(schedule.clients, data, seed)
    known: dict[str, tuple[ClientProfile, int]] = {}

    def end_of_fit(client_id: str, begin: float) -> float:
        if client_id not in known:
            tokens = local_epochs * sum(map(len, data[client_id].train))
            known[client_id] = profile_of(client_id), tokens
        profile, tokens = known[client_id]
        return profile.end_of_fit(begin, tokens, num_bytes_sent)

    clients = clients_by_department(data)
    if schedule.mode == "buffered":
        return BufferedRounds(
            clients,
            end_of_fit,
            buffer=schedule.buffer,
            concurrency=schedule.concurrency,
            max_staleness=schedule.max_staleness,
            seed=seed,
        )

    def sample(round_num: int) -> dict[str, tuple[Sequence[str], int]]:
        asked: dict[str, tuple[Sequence[str], int]] = {}
        for department, names in clients.items():
            count = num_sampled(len(names), config.clients_per_round, config.client_fraction)
            more = math.ceil(round(count * (1 + schedule.over_select), 9))
            drawn = sample_clients(names, clients_per_round=more, seed=seed, round_num=round_num, department=department)
            asked[department] = drawn, count
        return asked

    return SynchronousRounds(sample, end_of_fit, deadline=schedule.deadline)


def count_steps(
    config: FederationConfig,
    training: TrainingConfig,
    data: Mapping[str, ClientData],
    initial: LoraState,
    seed: int,
) -> dict[str, int]:
    """{department: rounds of a whole run in which updates of its clients are taken}: its steps, in mode buffered.

    Args:
        config: the ``federation`` block.
        training: the ``training`` block.
        data: {client_id: records}.
        initial: the common start, whose bytes take time.
        seed: the run seed.
    """
    departments = clients_by_department(data)
    schedule = make_schedule(
        config, training, data, FederationState(0, initial, dict.fromkeys(departments, initial)), seed
    )
    if schedule is None:  # all departments take part in every round
        return dict.fromkeys(departments, config.rounds)
    steps = dict.fromkeys(departments, 0)
    for _ in range(config.rounds):
        for name in clients_by_department(schedule.next_round().fits):
            steps[name] += 1
    return steps


def describe_plan(plan: RoundPlan, *, is_buffered: bool) -> str:
    """Whose updates a round takes, and when it ends, in one line for the log.

    Example:
        >>> from fl_lightning.federation.fit_buffers import PlannedFit
        >>> describe_plan(RoundPlan(3, {"hr/a": PlannedFit("hr/a", 1, 1)}, 5400.0), is_buffered=True)
        'round 3: hr steps after 1.5 virtual hours with 1 update, 1 of them stale (at most 1 step old)'
    """
    count, ages = len(plan.fits), [fit.staleness for fit in plan.fits.values()]
    updates = f"{count} update{'' if count == 1 else 's'}"
    time = "" if plan.seconds is None else f"after {plan.seconds / 3600:.4g} virtual hours "
    when = f"{time}with {updates}"
    late = f"; {len(plan.dropped)} dropped as too late" if plan.dropped else ""
    if not is_buffered:
        return f"round {plan.round_num}: ends {when}{late}"
    department, oldest = next(iter(plan.fits)).split("/", 1)[0], max(ages)
    stale = sum(age > 0 for age in ages)
    age = f", {stale} of them stale (at most {oldest} step{'' if oldest == 1 else 's'} old)" if stale else ""
    return f"round {plan.round_num}: {department} steps {when}{age}{late}"
