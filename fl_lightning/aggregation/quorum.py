"""Which departments aggregate in a round: those with enough valid updates."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fl_lightning.aggregation import secure
from fl_lightning.aggregation.robust.krum import clients_needed
from fl_lightning.aggregation.updates import RoundUpdates
from fl_lightning.config import FederationConfig
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.round_report import RoundReport, by_client

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.session import SecureMean

log = logging.getLogger(__name__)


def departments_to_aggregate(
    config: FederationConfig,
    updates: RoundUpdates,
    tasks: Iterable[ClientTask],
    report: RoundReport,
    masked_sums: Mapping[str, SecureMean] | None = None,
) -> list[str]:
    """The departments with enough valid updates; the others keep their state, as if none of their clients was asked.

    Under differential privacy these are all departments that were asked: whether clients answered must not show. With
    secure aggregation it shows anyway, to whoever gets masked updates.

    Args:
        config: the ``federation`` block.
        updates: valid ones; those of departments with too few are removed.
        tasks: of the round.
        report: of the round; clients of departments with too few updates are added to `rejected`.
        masked_sums: {department: its masked sum}, if clients elsewhere have sent no updates but masked ones.

    Raises:
        RunError: if somebody was asked and no department has enough, and rounds are synchronous.
    """
    asked = Counter(task.department for task in tasks)
    if masked_sums is not None:
        small = {d: len(s.clients) for d, s in sorted(masked_sums.items()) if len(s.clients) < config.min_clients}
        for department, count in small.items():
            log.warning(
                "round %d: %s: expected a sum of at least %d sites (federation.min_clients), got %d; its state is kept",
                report.round_num, department, config.min_clients, count,
            )  # fmt: skip
        return sorted(masked_sums.keys() - small.keys())
    if config.guard.name == "dp" and not config.noise_in_shares:
        departments = sorted(asked)
    else:
        departments = _drop_small(config, updates, report, asked)
    # With buffered rounds, another department may step in the next round.
    if not departments and (asked or report.dropped) and config.schedule.mode == "sync":
        raise RunError(
            f"round {report.round_num}: expected a department with at least {config.min_clients} valid updates "
            f"(federation.min_clients) and enough for guard {config.guard.name}, got none; the state of the round "
            "before is kept. The log gives the reason for each client"
        )
    return departments


def _drop_small(
    config: FederationConfig, updates: RoundUpdates, report: RoundReport, asked: Mapping[str, int]
) -> list[str]:
    needed, key = config.min_clients, "federation.min_clients"
    if config.guard.name in ("krum", "multi_krum") and clients_needed(config.guard.f) > needed:
        needed, key = clients_needed(config.guard.f), f"federation.guard: {config.guard.name} with f = {config.guard.f}"
    if config.secure_aggregation:
        key = "federation.masking"
    for department in updates.departments:
        if config.secure_aggregation:
            needed = max(config.min_clients, secure.clients_needed(config, asked[department]))
        if (count := len(updates.of(department))) >= needed:
            continue
        reason = f"{department}: expected at least {needed} valid updates, got {count}"
        log.warning("round %d: %s (%s); its state is kept", report.round_num, reason, key)
        department_report = report.departments[department]
        department_report.rejected.update(by_client(dict.fromkeys(updates.of(department), reason)))
        updates.drop(department)
        department_report.residual_norms = {}
    return updates.departments
