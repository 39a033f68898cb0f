"""What happened in one round, for the callbacks that log, draw and write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from fl_lightning.clustering import Clustering
from fl_lightning.clustering.tree import ROOT
from fl_lightning.state import LoraState

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.session import SecureMean

Value = TypeVar("Value")


@dataclass
class DepartmentReport:
    """How a department was aggregated in a round.

    Attributes:
        weights: {client: w_c}, summing to 1.
        residual_norms: {client: ‖θ_c − θ_d‖} over the shared factor.
        drift: {client: ‖θ_c − θ_d'‖} over the shared factor.
        moved: ‖θ_d' − θ_d‖.
        rejected: {client: reason} of updates that were not averaged.
        client_clusters: {client: cluster id}; empty without client clusters.
        scaled: {client: factor below 1} of updates that were shortened before averaging.
        step_size: share of the mean residual that the department moved by, or the rate of its server optimizer.
        aggregation_error: relative distance of the department's product P from its clients' mean product,
            ``‖Σ w s B A − P‖ / ‖Σ w s B A‖`` over all layers; under flora P is the product of the mean factors.
        layer_errors: the same by layer.
        rank_errors: {client: the same for the best product of the client's rank, which it starts from}; under svd.
        epsilon: of a client of this department over all rounds so far; None without differential privacy.
        clip: norm to which the updates were clipped; None without differential privacy.
        summed: clients in the masked sum; None without secure aggregation.
        quantization_error: largest error of an element of their mean, besides noise; None without secure aggregation.
    """

    weights: dict[str, float] = field(default_factory=dict)
    residual_norms: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    moved: float = 0.0
    rejected: dict[str, str] = field(default_factory=dict)
    client_clusters: dict[str, int] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    step_size: float = 0.0
    aggregation_error: float | None = None
    layer_errors: dict[str, float] = field(default_factory=dict)
    rank_errors: dict[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    clip: float | None = None
    summed: int | None = None
    quantization_error: float | None = None


@dataclass
class RoundReport:
    """What happened in a round.

    Attributes:
        round_num: from 1; 0 before the first round.
        departments: {department: how it was aggregated}.
        clusterings: {group: clustering of its members}; that of the whole federation under `ROOT`.
        bytes_sent: bytes of the shared tensors, by level: ``client/up``, ``client/down``, ``department/up``,
            ``department/down``, ``group/up``, ``group/down``; and by client id for each client's upload.
        num_tokens: tokens that the clients have trained on, own adapters beside the federation included.
        virtual_hours: at the end of the round; None without virtual time.
        staleness: {client_id: steps of its department since it started}, with virtual time or buffers.
        dropped: clients whose updates came too late to be taken.
        aggregated: {department: its state after aggregation, before clusters are mixed}.
    """

    round_num: int
    departments: dict[str, DepartmentReport] = field(default_factory=dict)
    clusterings: dict[str, Clustering] = field(default_factory=dict)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0
    virtual_hours: float | None = None
    staleness: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    aggregated: Mapping[str, LoraState] = field(default_factory=dict)

    def count_masked(self, department: str, masked: SecureMean) -> None:
        """Take in what a department's secure aggregation has cost, and how exact it is."""
        self.departments[department].summed = len(masked.clients)
        self.departments[department].quantization_error = masked.error
        self.bytes_sent.update(masked.bytes_up)
        self.bytes_sent["client/up"] += sum(masked.bytes_up.values())
        self.bytes_sent["client/down"] += sum(masked.bytes_down.values())

    @property
    def is_planned(self) -> bool:
        """Whether a schedule said whose updates the round takes: in virtual time, or from the buffers of sites."""
        return self.virtual_hours is not None or bool(self.staleness)

    @property
    def clustering(self) -> Clustering | None:
        """The clusters of the whole federation; None if nothing was clustered."""
        return self.clusterings.get(ROOT)


def by_client(values: Mapping[str, Value]) -> dict[str, Value]:
    """{client: value} of one department, from {client_id: value}.

    Example:
        >>> by_client({"hr/client_0": 0.25})
        {'client_0': 0.25}
    """
    return {client_id.split("/", 1)[1]: value for client_id, value in values.items()}
