"""What a run folder says about one of its adapters: metrics and counts, no names of people and no text of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fl_lightning.runs.artifact_reader import read_artifacts, read_num_examples
from fl_lightning.runs.artifacts import AuditBound, AuditTest, PersonalResult, RunArtifacts
from fl_lightning.storage.personal_models import ONE_ADAPTER
from fl_lightning.storage.run_adapters import best_rounds

Kind = Literal["department", "group", "client"]


@dataclass(frozen=True)
class AdapterFacts:
    """Known facts about an adapter.

    Attributes:
        name: of the department, group or client.
        kind: which of these it is.
        rounds: number of finished rounds; of a client, the round of its adapter.
        planned_rounds: rounds that the config asks for.
        departments: number of departments in the federation, or in the group.
        clients: number of clients that trained for the adapter.
        examples: training records of these clients; None if unknown.
        base: {metric: value} of the base model on the held-out records; empty if unknown.
        final: the same of the adapter.
        held_out: number of held-out records behind these metrics; None if unknown.
        rejected: number of updates of these clients that were not averaged, over all rounds.
        epsilon: ε of differential privacy, the largest of its departments; None without differential privacy.
        best_round: round that early stopping has taken the adapter from; None without early stopping.
        bound: the audit's lower bound on ε; None without canaries.
        membership: the audit's membership test against the base model; None without an audit.
        personal: what `personalize` has chosen, of the one adapter that it has made for a client; None of others.
    """

    name: str
    kind: Kind
    rounds: int
    planned_rounds: int | None = None
    departments: int = 0
    clients: int = 0
    examples: int | None = None
    base: Mapping[str, float] = field(default_factory=dict)
    final: Mapping[str, float] = field(default_factory=dict)
    held_out: int | None = None
    rejected: int = 0
    epsilon: float | None = None
    best_round: int | None = None
    bound: AuditBound | None = None
    membership: AuditTest | None = None
    personal: PersonalResult | None = None


def collect_facts(run_folder: Path, name: str, groups: Mapping[str, list[str]] | None = None) -> AdapterFacts:
    """The facts about one adapter of a run; those that the folder does not contain are left at their default.

    Args:
        run_folder: of the run.
        name: a department, a group, a client such as ``hr/client_0``, or ``hr/client_0+adapter``.
        groups: ``federation.hierarchy.groups`` of its config.
    """
    run = read_artifacts(run_folder)
    examples: dict[str, int | None] = {**read_num_examples(run_folder)}
    if not examples:
        examples = {f"{d}/{client}": None for d, clients in run.client_losses.items() for client in clients}
    if name.endswith(ONE_ADAPTER):
        client_id = name.removesuffix(ONE_ADAPTER)
        return _personal_facts(_client_facts(run, client_id, examples), run.personal.get(client_id))
    bound, membership = _audited(run, name)
    if "/" in name:
        return replace(_client_facts(run, name, examples), bound=bound, membership=membership)
    departments = departments_of(groups or {}, name)
    counts = [count for client_id, count in examples.items() if client_id.split("/", 1)[0] in departments]
    known = [count for count in counts if count is not None]
    epsilons = [run.epsilon[department] for department in departments if department in run.epsilon]
    kind: Kind = "group" if name in run.groups else "department"
    return AdapterFacts(
        name,
        kind,
        rounds=max(run.rounds, default=0),
        planned_rounds=run.planned_rounds,
        departments=len(departments) if kind == "group" else _num_departments(examples),
        clients=len(counts),
        examples=sum(known) if counts and len(known) == len(counts) else None,
        base=run.metrics.get(name, {}).get("base", {}),
        final=run.metrics.get(name, {}).get("final", {}),
        held_out=_num_held_out(run, departments),
        rejected=sum(update.department in departments for update in run.rejected),
        epsilon=max(epsilons) if len(epsilons) == len(departments) else None,
        best_round=best_rounds(run.folder).get(name),
        bound=bound,
        membership=membership,
    )


def departments_of(groups: Mapping[str, list[str]], name: str) -> set[str]:
    """The departments below a group; a department, or a team of clients, is its own only member.

    Example:
        >>> sorted(departments_of({"trade": ["finance", "sales"], "all": ["trade", "hr"]}, "all"))
        ['finance', 'hr', 'sales']
    """
    members = groups.get(name, [])
    if not members or any("/" in member for member in members):
        return {name}
    return set().union(*(departments_of(groups, member) for member in members))


def _audited(run: RunArtifacts, name: str) -> tuple[AuditBound | None, AuditTest | None]:
    """What an audit has found about the adapter that is published: a department's is the mixed one, if there is one."""
    if run.audit is None:
        return None, None
    kinds = ("client", "group", "mixed", "department")
    bounds = {line.kind: line for line in run.audit.bounds if line.owner == name}
    tests = {line.kind: line for line in run.audit.tests if line.owner == name and line.score == "base"}
    return next((bounds[k] for k in kinds if k in bounds), None), next((tests[k] for k in kinds if k in tests), None)


def _client_facts(run: RunArtifacts, name: str, examples: Mapping[str, int | None]) -> AdapterFacts:
    department, client = name.split("/", 1)
    by_round = {r: departments.get(department, {}).get(client) for r, departments in run.client_metrics.items()}
    rounds = [r for r, metrics in by_round.items() if metrics]
    best = best_rounds(run.folder).get(name)
    metrics = dict(by_round[best if best in rounds else max(rounds)] or {}) if rounds else {}
    held_out = metrics.pop("num_examples", None)
    return AdapterFacts(
        name,
        "client",
        rounds=max(rounds, default=max(run.rounds, default=0)),
        planned_rounds=run.planned_rounds,
        departments=_num_departments(examples),
        clients=1,
        examples=examples.get(name),
        final=metrics,
        held_out=None if held_out is None else int(held_out),
        rejected=sum((update.department, update.client) == (department, client) for update in run.rejected),
        best_round=best,
    )


def _personal_facts(client: AdapterFacts, result: PersonalResult | None) -> AdapterFacts:
    """The facts about a client's one adapter, with its loss in place of that of the client's last fit."""
    result = PersonalResult({}) if result is None else result
    final = {"loss": result.losses["adapter"]} if "adapter" in result.losses else {}
    return replace(client, final=final, best_round=None, personal=result)


def _num_departments(client_ids: Mapping[str, int | None]) -> int:
    return len({client_id.split("/", 1)[0] for client_id in client_ids})


def _num_held_out(run: RunArtifacts, departments: set[str]) -> int | None:
    """Held-out records of the clients of these departments, each in its newest round; None if unknown."""
    counts = [
        metrics["num_examples"]
        for department, clients in run.newest_client_metrics().items()
        if department in departments
        for metrics in clients.values()
        if "num_examples" in metrics
    ]
    return int(sum(counts)) if counts else None
