"""The contents of a run folder, as the report, the model cards and the comparison use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fl_lightning.storage.files import natural_key

ROOT = ""
"""The whole federation, as a key beside the names of groups."""

LEVELS = tuple(f"{level}/{way}" for level in ("client", "department", "group") for way in ("up", "down"))
"""Levels at which adapters travel, each up and down."""

Curve = dict[int, float]
"""{round: value}; round 0 is the base model."""

MetricValues = dict[str, float]
"""{metric: value}."""


@dataclass(frozen=True)
class ClusteringResult:
    """The clusters of a group's members in one round.

    Attributes:
        assignments: {member: cluster}.
        n_clusters: number of clusters; None if unknown.
        method: of the clustering.
        select: rule that chose the number of clusters.
        inertias: {k: inertia} of k-means.
        scores: {k: score by which `select` chose}.
        members: names of rows and columns of `cosine`.
        cosine: pairwise cosine similarities, shape (n, n); None if unknown.
        representation: the vectors that were compared.
    """

    assignments: dict[str, int]
    n_clusters: int | None = None
    method: str = ""
    select: str = ""
    inertias: dict[int, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    cosine: list[list[float]] | None = None
    representation: str = ""


@dataclass(frozen=True)
class ExcludedUpdate:
    """A client's update that was not averaged, or only scaled down."""

    round_num: int
    department: str
    client: str
    reason: str


PERSONAL_LOSSES = ("own", "level", "mixture", "adapter")
"""What a client can take, whose losses are in ``personal_eval.json``: its own adapter, the best level, the mixture of
all levels, and one adapter of it."""


@dataclass(frozen=True)
class PersonalResult:
    """What `personalize` has chosen for a client.

    Attributes:
        weights: {level: weight in its mixture}, as they were fitted.
        chosen: the level with the lowest loss on its selection records.
        adapter_is: what its one adapter is made of: ``mixture``, ``svd``, ``distillation``, or a level.
        losses: {own, level, mixture or adapter: held-out loss}; unknown ones are absent.
    """

    weights: dict[str, float]
    chosen: str = ""
    adapter_is: str = ""
    losses: MetricValues = field(default_factory=dict)


@dataclass(frozen=True)
class DepartmentMixture:
    """A department's mixture of predictions after the last round that was evaluated.

    Attributes:
        weights: {level: weight}.
        losses: {level or ``mixture``: held-out loss}; unknown ones are absent.
    """

    weights: dict[str, float]
    losses: MetricValues = field(default_factory=dict)


@dataclass(frozen=True)
class AuditBound:
    """A lower bound on ε from canaries.

    Attributes:
        kind: of the adapter: client, department, mixed, group; or one of these and ", A alone".
        owner: of the adapter; ``all`` of a kind.
        guesses: number of guessed coins.
        correct: those that were right.
        epsilon: the bound.
        provable: the bound if all had been right.
        upper: the accountant's ε for a record; None if it does not cover the adapter.
    """

    kind: str
    owner: str
    guesses: int
    correct: int
    epsilon: float
    provable: float
    upper: float | None = None


@dataclass(frozen=True)
class AuditTest:
    """A membership test.

    Attributes:
        kind: as of `AuditBound`.
        owner: as of `AuditBound`.
        score: what losses were compared with: base or reference.
        values: {field of `MembershipResult`: value}.
    """

    kind: str
    owner: str
    score: str
    values: MetricValues


@dataclass(frozen=True)
class AuditResult:
    """What `audit` has found; δ is None if unknown."""

    delta: float | None
    bounds: list[AuditBound] = field(default_factory=list)
    tests: list[AuditTest] = field(default_factory=list)


@dataclass
class RunArtifacts:
    """The contents of a run folder; a file that is missing or broken leaves its fields empty.

    Attributes:
        folder: the run folder.
        config_text: of ``config.yaml``.
        planned_rounds: ``federation.rounds`` of the config.
        losses: {department or group: held-out loss by round}.
        mean_loss: mean over departments by round.
        selection_loss: mean over departments of their loss on selection records by round, under early stopping.
        own_selection_loss: the same as a mean over clients' own adapters.
        client_losses: {department: {client: held-out loss of its own adapter by round}}.
        client_metrics: {round: {department: {client: metrics of its own adapter}}}.
        metrics: {department or group: {"base" or "final": metrics}}.
        mean_metrics: {"base" or "final": means over departments}.
        is_evaluated: whether ``federated_eval.json`` can be read.
        groups: the names in `losses` and `metrics` that are groups of departments.
        clusters: {round: {group: clusters of its members}}, with `ROOT` for the whole federation.
        n_clusters: number of clusters of departments by round, from ``metrics.csv``.
        client_clusters: {round: {department: {client: cluster}}}.
        rejected: updates that were not averaged.
        scaled: updates that were scaled down before averaging.
        bytes_sent: {round: {one of `LEVELS`: bytes}}.
        tokens: training tokens by round.
        virtual_hours: at the end of each round, where clients have profiles (``federation.schedule``).
        seconds: {round: {phase: seconds}}.
        epsilon: {department: ε of differential privacy after the last round}.
        personal: {client_id: what `personalize` has chosen}; empty before.
        mixtures: {department: its mixture}, under ``dept_clusters.mix: predictions``.
        audit: what `audit` has found; None before.
        missing: one sentence for each file that is missing or broken, with its consequence.
        broken: {file: reason} of those that exist but cannot be read.
    """

    folder: Path
    config_text: str = ""
    planned_rounds: int | None = None
    losses: dict[str, Curve] = field(default_factory=dict)
    mean_loss: Curve = field(default_factory=dict)
    selection_loss: Curve = field(default_factory=dict)
    own_selection_loss: Curve = field(default_factory=dict)
    client_losses: dict[str, dict[str, Curve]] = field(default_factory=dict)
    client_metrics: dict[int, dict[str, dict[str, MetricValues]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, MetricValues]] = field(default_factory=dict)
    mean_metrics: dict[str, MetricValues] = field(default_factory=dict)
    is_evaluated: bool = False
    groups: set[str] = field(default_factory=set)
    clusters: dict[int, dict[str, ClusteringResult]] = field(default_factory=dict)
    n_clusters: dict[int, int] = field(default_factory=dict)
    client_clusters: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)
    rejected: list[ExcludedUpdate] = field(default_factory=list)
    scaled: list[ExcludedUpdate] = field(default_factory=list)
    bytes_sent: dict[int, MetricValues] = field(default_factory=dict)
    tokens: Curve = field(default_factory=dict)
    virtual_hours: Curve = field(default_factory=dict)
    seconds: dict[int, MetricValues] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)
    personal: dict[str, PersonalResult] = field(default_factory=dict)
    mixtures: dict[str, DepartmentMixture] = field(default_factory=dict)
    audit: AuditResult | None = None
    missing: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def departments(self) -> list[str]:
        """Names in `losses`, `client_losses` and `metrics` that are not groups, in natural order."""
        names = {*self.losses, *self.client_losses, *self.metrics} - self.groups
        return sorted(names, key=natural_key)

    @property
    def rounds(self) -> list[int]:
        """Rounds with any results, without the base model's round 0."""
        curves = [*self.losses.values()]
        curves += [curve for clients in self.client_losses.values() for curve in clients.values()]
        rounds = {r for curve in curves for r in curve} | self.clusters.keys() | self.bytes_sent.keys()
        return sorted(rounds - {0})

    def newest_client_metrics(self) -> dict[str, dict[str, MetricValues]]:
        """{department: {client: metrics of the newest round that has any}}."""
        newest: dict[str, dict[str, MetricValues]] = {}
        for _, departments in sorted(self.client_metrics.items()):
            for department, clients in departments.items():
                newest.setdefault(department, {}).update(clients)
        return newest
