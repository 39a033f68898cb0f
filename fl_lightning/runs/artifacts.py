"""What a report knows of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fl_lightning.storage.files import natural_key

ROOT = ""
"""The federation as a whole, among groups."""

Curve = dict[int, float]
"""{round: value}; round 0 is the base model."""


@dataclass(frozen=True)
class Found:
    """The clusters of a group's members in a round.

    Attributes:
        assignments: {member: cluster}.
        inertias: {k: inertia}, where k-means was tried.
        scores: {k: what the rule `select` looked at}.
        cosine: similarities, in the order of `members`; None where there are none.
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
class LeftOut:
    """A client whose update was not averaged, or only in part."""

    round_num: int
    department: str
    client: str
    reason: str


@dataclass
class Run:
    """What a run folder says.

    Attributes:
        config: text of ``config.yaml``; empty where there is none.
        planned: rounds that the config asks for.
        losses: {department or group: held-out loss}.
        mean_loss: over departments.
        client_losses: {department: {client: held-out loss of its own adapter}}.
        figures: {department or group: {"base" or "final": {figure: value}}}.
        groups: names among those that are groups above the departments.
        clusters: {round: {group: clusters of its members}}, `ROOT` being the federation.
        client_clusters: {round: {department: {client: cluster}}}.
        sent: {round: {level and way, such as client/up: bytes}}.
        seconds: {round: {phase: seconds}}.
        epsilon: {department: ε}, of the last round.
        missing: what is not there or cannot be read, and what the page lacks for it.
    """

    folder: Path
    config: str = ""
    planned: int | None = None
    losses: dict[str, Curve] = field(default_factory=dict)
    mean_loss: Curve = field(default_factory=dict)
    client_losses: dict[str, dict[str, Curve]] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    clusters: dict[int, dict[str, Found]] = field(default_factory=dict)
    client_clusters: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    scaled: list[LeftOut] = field(default_factory=list)
    sent: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def departments(self) -> list[str]:
        """Everybody that has clients or figures and is no group, in natural order."""
        names = {*self.losses, *self.client_losses, *self.figures} - self.groups
        return sorted(names, key=natural_key)

    @property
    def rounds(self) -> list[int]:
        """The rounds that left anything behind, base model not counted."""
        curves = [*self.losses.values(), *(c for own in self.client_losses.values() for c in own.values())]
        found = {r for curve in curves for r in curve} | self.clusters.keys() | self.sent.keys()
        return sorted(found - {0})
