"""From which round a run must be computed again, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints
from fl_lightning.federation.checkpoint_schema import CheckpointHeader
from fl_lightning.federation.history import HistoryMark, Row, read_history
from fl_lightning.federation.state import clients_by_department
from fl_lightning.federation.update_archive import archived_cohorts
from fl_lightning.runs.forgetting.request import Removal
from fl_lightning.storage.run_layout import CHECKPOINT_FACTS, HISTORY, UPDATES
from fl_lightning.training.client_sampling import sample_clients


@dataclass(frozen=True)
class ForgetPlan:
    """What is computed again.

    Attributes:
        start_round: the round after which both runs are the same; 0 starts anew.
        reason: why it starts no later.
        rounds: of the run.
        fits: fits of clients in the rounds that are computed again.
        reused: at most so many of them are taken from the archive instead (``retention.updates``).
        seconds: expected, by the rows of the run before; None if it has none.
        seconds_anew: expected of a new run from the start.
    """

    start_round: int
    reason: str
    rounds: int
    fits: int
    reused: int = 0
    seconds: float | None = None
    seconds_anew: float | None = None

    @property
    def first_round(self) -> int:
        """The first round that is computed again."""
        return self.start_round + 1


def make_plan(run_folder: Path, config: RunConfig, removal: Removal, *, from_start: bool = False) -> ForgetPlan:
    """Plan a run without what is taken out.

    Args:
        run_folder: of the run before, finished.
        config: of the run before.
        removal: what is taken out.
        from_start: start anew in any case.
    """
    start, reason = (0, "--from-start was given") if from_start else _start_round(run_folder, config, removal)
    rounds = config.federation.rounds
    own = 2 if config.personal.own == "during" else 1
    present = removal.before.keys() - removal.gone
    before = [own * len(asked(config, removal.places, removal.before, number)) for number in range(1, rounds + 1)]
    after = [own * len(asked(config, removal.places, present, number)) for number in range(1, rounds + 1)]
    rows = read_rows(run_folder)
    evaluations = 0 if not start else 1 + len([n for n in checkpoints(run_folder) if 0 < n <= start])
    reused = count_reusable(run_folder, config, removal, start)
    return ForgetPlan(
        start,
        reason,
        rounds,
        sum(after[start:]),
        reused,
        _seconds(rows, sum(before), sum(after[start:]) - reused, rounds - start, evaluations),
        _seconds(rows, sum(before), sum(after), rounds, 1),
    )


def asked(config: RunConfig, places: Iterable[str], present: Collection[str], round_num: int) -> list[str]:
    """The clients that a round asks, if rounds are not planned in virtual time."""
    federation = config.federation
    return [
        client_id
        for department, members in clients_by_department(places).items()
        for client_id in sample_clients(
            members,
            clients_per_round=federation.clients_per_round,
            client_fraction=federation.client_fraction,
            seed=config.seed,
            round_num=round_num,
            department=department,
        )
        if client_id in present
    ]


def _start_round(run_folder: Path, config: RunConfig, removal: Removal) -> tuple[int, str]:
    """(the round after which the run can go on, why no later one)."""
    if why := why_anew(config, removal):
        return 0, why
    touched, rounds = removal.gone | removal.changed, config.federation.rounds
    first = next(
        (n for n in range(1, rounds) if not touched.isdisjoint(asked(config, removal.places, touched, n))), rounds
    )
    who = "it" if len(touched) == 1 else "one of them"
    if first == 1:
        return 0, f"{who} took part in round 1"
    kept = [number for number in checkpoints(run_folder) if number < first]
    start = max(kept, default=0)
    if start == first - 1:
        return (
            start,
            f"{who} took part in round {first} for the first time" if first < rounds else "it is the last round",
        )
    return start, f"{who} took part in round {first} for the first time; no later checkpoint before it was kept"


def why_anew(config: RunConfig, removal: Removal) -> str:
    """Why a run must start anew, whenever those who are taken out took part; empty if it need not."""
    federation, after = config.federation, removal.config
    departments = {client_id.split("/", 1)[0] for client_id in removal.before}
    left = {client_id.split("/", 1)[0] for client_id in removal.before if client_id not in removal.gone}
    if departments != left:
        return f"all of {min(departments - left)} is taken out, which was clustered with the others from round 1 on"
    if after.federation.hierarchy != federation.hierarchy or after.lora.profiles != config.lora.profiles:
        return "a group or a profile goes too, which counts from round 1 on"
    if share_policy(federation.share).is_central:
        return "all records were trained on together from round 1 on"
    if federation.guard.name == "dp":
        return "noise must not be used for two releases: the difference of both would have none"
    if federation.schedule.clients.speed is not None:
        return "whom a round takes depends on when the others have finished (federation.schedule)"
    clusters = federation.dept_clusters
    by_records = (
        ("federation.dept_clusters.representation: cross_loss", clusters.representation == "cross_loss"),
        ("federation.weighting: contribution", federation.weighting == "contribution"),
        ("federation.dept_clusters.mix: predictions", clusters.mixes_predictions),
        ("training.early_stopping", config.training.early_stopping),
        ("retention.best", config.retention.best > 0),
    )
    for key, applies in by_records:
        if applies:
            return f"held-out or selection records of all clients count from round 1 on ({key})"
    return ""


def count_reusable(run_folder: Path, config: RunConfig, removal: Removal, start_round: int) -> int:
    """At most how many fits of the rounds after `start_round` have the same inputs as in the run before.

    These are cohorts without anybody who is taken out or changed, as long as their departments' states are the same:
    until something of the others reaches them. Cohorts that are divided otherwise now are counted too.
    """
    federation = config.federation
    touched = removal.gone | removal.changed
    mixes = federation.dept_clusters.enabled or federation.hierarchy.groups or federation.share == "central"
    departments: set[str] = set()
    everywhere, count = False, 0
    for number in range(start_round + 1, federation.rounds + 1):
        cohorts = archived_cohorts(run_folder / UPDATES, number)
        for cohort in cohorts if not everywhere else ():
            names = {client_id.split("/", 1)[0] for client_id in cohort}
            if touched.isdisjoint(cohort) and departments.isdisjoint(names):
                count += len(cohort)
        now = touched.intersection(asked(config, removal.places, touched, number))
        departments |= {client_id.split("/", 1)[0] for client_id in now}
        everywhere = everywhere or bool(now and mixes)
    return count


def read_rows(run_folder: Path) -> list[Row]:
    """The logged rows of a run's newest checkpoint that can be read; none if there is no such checkpoint."""
    for folder in reversed(checkpoints(run_folder).values()):
        try:
            history = CheckpointHeader.read(folder / CHECKPOINT_FACTS).history
            if not isinstance(history, HistoryMark):
                return history
            return [row for entry in read_history(folder.parent / HISTORY, history) for row in entry.rows]
        except (InputError, OSError, ValueError):
            continue
    return []


def _seconds(rows: Iterable[Row], fits_before: int, fits: int, rounds: int, evaluations: int) -> float | None:
    """Expected seconds of some fits, rounds and evaluations, by the means of a run's rows."""
    timed = [row for _, row in rows if "seconds/fit" in row]
    if not timed or not fits_before:
        return None

    def total(phase: str) -> float:
        return math.fsum(row.get(f"seconds/{phase}", 0.0) for row in timed)

    fit, per_round = total("fit") / fits_before, (total("aggregate") + total("write")) / len(timed)
    evaluate = total("evaluate") / len(timed)
    return fit * fits + (per_round + evaluate) * rounds + evaluate * evaluations


def clients_known(run_folder: Path) -> Mapping[str, str]:
    """{client_id: digest of its records} of a run, by its newest checkpoint; empty if it has none."""
    for folder in reversed(checkpoints(run_folder).values()):
        try:
            identity = CheckpointHeader.read(folder / CHECKPOINT_FACTS).identity
        except InputError:
            continue
        return dict((identity or {}).get("clients", {}))
    return {}
