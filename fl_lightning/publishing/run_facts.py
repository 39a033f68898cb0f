"""What a run folder says of one of its adapters: figures and counts, no names of people and no text of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fl_lightning.errors import InputError
from fl_lightning.runs.artifact_reader import read_run
from fl_lightning.runs.artifacts import Run
from fl_lightning.runs.lenient import by_round, mapping, number, numbers
from fl_lightning.storage.files import read_json

Kind = Literal["department", "group", "client"]


@dataclass(frozen=True)
class Facts:
    """What is known of an adapter.

    Attributes:
        name: of the department, group or client.
        kind: which of these it is.
        rounds: finished rounds, by which the adapter was made; a client's own last one.
        planned: rounds that the config asks for.
        departments: how many the federation has; those of the group where it is one.
        clients: how many trained for it.
        examples: training records of these clients in a round; None where the run does not say.
        base: {figure: value} of the base model on the held-out records; empty where not known.
        final: the same of the adapter.
        held_out: how many records the figures rest on; None where the run does not say.
        left_out: updates of these clients that were not averaged, over all rounds.
        epsilon: ε of differential privacy, the largest of its departments; None where there is none.
    """

    name: str
    kind: Kind
    rounds: int
    planned: int | None = None
    departments: int = 0
    clients: int = 0
    examples: int | None = None
    base: Mapping[str, float] = field(default_factory=dict)
    final: Mapping[str, float] = field(default_factory=dict)
    held_out: int | None = None
    left_out: int = 0
    epsilon: float | None = None


def facts_of(run_folder: Path, name: str, groups: Mapping[str, list[str]] | None = None) -> Facts:
    """What is known of one adapter of a run; what the folder lacks is left out.

    Args:
        run_folder: of the run.
        name: a department, a group, or a client such as ``hr/client_0``.
        groups: ``federation.hierarchy.groups`` of its config.
    """
    run = read_run(run_folder)
    trained = _examples(run_folder) or {f"{d}/{c}": None for d, own in run.client_losses.items() for c in own}
    if "/" in name:
        return _client(run_folder, run, name, trained)
    mine = departments_of(groups or {}, name)
    counts = [count for client_id, count in trained.items() if client_id.split("/", 1)[0] in mine]
    known = [count for count in counts if count is not None]
    figures = run.figures.get(name, {})
    spent = [run.epsilon[department] for department in mine if department in run.epsilon]
    kind: Kind = "group" if name in run.groups else "department"
    return Facts(
        name,
        kind,
        rounds=max(run.rounds, default=0),
        planned=run.planned,
        departments=len(mine) if kind == "group" else len({client_id.split("/", 1)[0] for client_id in trained}),
        clients=len(counts),
        examples=sum(known) if counts and len(known) == len(counts) else None,
        base=figures.get("base", {}),
        final=figures.get("final", {}),
        held_out=_held_out(run_folder, mine),
        left_out=sum(entry.department in mine for entry in run.left_out),
        epsilon=max(spent) if len(spent) == len(mine) else None,
    )


def departments_of(groups: Mapping[str, list[str]], name: str) -> set[str]:
    """The departments below a group; of a department, or a team of clients, itself.

    Example:
        >>> sorted(departments_of({"trade": ["finance", "sales"], "all": ["trade", "hr"]}, "all"))
        ['finance', 'hr', 'sales']
    """
    members = groups.get(name, [])
    if not members or any("/" in member for member in members):
        return {name}
    return set().union(*(departments_of(groups, member) for member in members))


def _client(run_folder: Path, run: Run, name: str, trained: Mapping[str, int | None]) -> Facts:
    department, client = name.split("/", 1)
    own = {r: mapping(mapping(d.get(department)).get(client)) for r, d in _evaluations(run_folder).items()}
    rounds = [r for r, figures in own.items() if figures]
    figures = numbers(own[max(rounds)]) if rounds else {}
    held_out = figures.pop("num_examples", None)
    return Facts(
        name,
        "client",
        rounds=max(rounds, default=max(run.rounds, default=0)),
        planned=run.planned,
        departments=len({client_id.split("/", 1)[0] for client_id in trained}),
        clients=1,
        examples=trained.get(name),
        final=figures,
        held_out=None if held_out is None else int(held_out),
        left_out=sum((entry.department, entry.client) == (department, client) for entry in run.left_out),
    )


def _evaluations(run_folder: Path) -> dict[int, dict[str, Any]]:
    return {
        r: mapping(own) for r, own in by_round(_read(run_folder / "client_eval_all_rounds.json").get("rounds")).items()
    }


def _held_out(run_folder: Path, departments: set[str]) -> int | None:
    """Held-out records of the clients of these departments, each at its newest round."""
    found: dict[str, float] = {}
    for _, own in sorted(_evaluations(run_folder).items()):
        for department in departments:
            for client, figures in mapping(own.get(department)).items():
                if (count := number(mapping(figures).get("num_examples"))) is not None:
                    found[f"{department}/{client}"] = count
    return int(sum(found.values())) if found else None


def _examples(run_folder: Path) -> dict[str, int | None]:
    """{client_id: training records}, as the newest checkpoint has it; empty where there is none."""
    rounds = by_round(
        {p.parent.name.removeprefix("round_"): p for p in run_folder.glob("checkpoints/round_*/state.json")}
    )
    if not rounds:
        return {}
    counts = numbers(_read(rounds[max(rounds)]).get("examples"))
    return {client_id: int(count) for client_id, count in counts.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        return mapping(read_json(path))
    except InputError:
        return {}
