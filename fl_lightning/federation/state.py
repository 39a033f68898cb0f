"""What a federation knows between rounds, and what happened in one: plain values, changed by `FederatedRound` alone."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fl_lightning.clustering import Grouping
from fl_lightning.clustering.tree import ROOT
from fl_lightning.flora import WeightedMean
from fl_lightning.linalg.adapter_algebra import side_by_side
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.state import LoraState, check_same_layout, is_lora_b


@dataclass(frozen=True)
class FederationState:
    """Everything the next round depends on.

    Attributes:
        round_num: the last round that is complete; 0 before the first.
        initial: A₀ and B = 0, shared by everybody.
        departments: {department: θ_d}.
        client_starts: {client_id: the shared factor the client starts from next}, where client clusters are on.
        personal: {client_id: the client's own B}, where ``share: a``.
        examples: {client_id: num_examples} of every client heard of.
        cluster_assignments: {department or group: cluster id} of the last round.
        server: {department: what its server step remembers}, tensors named ``letter/parameter``.
        grouping: {group: what its members' clusters go by from round to round}, JSON values; see `hierarchy`.
        groups: {group: state} of the groups above the departments.
        privacy: what has been released so far, under ``guard.name: dp``.
        products: {department: what it knows beside its factors}, in singular vectors (`combiners.singular`), of any
            rank; only where the combiner is stack, residual or svd.
    """

    round_num: int
    initial: LoraState
    departments: dict[str, LoraState]
    client_starts: dict[str, LoraState] = field(default_factory=dict)
    personal: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    cluster_assignments: dict[str, int] = field(default_factory=dict)
    server: dict[str, LoraState] = field(default_factory=dict)
    products: dict[str, LoraState] = field(default_factory=dict)
    privacy: Ledger | None = None
    grouping: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, LoraState] = field(default_factory=dict)

    @classmethod
    def begin(cls, initial: LoraState, departments: Iterable[str], groups: Iterable[str] = ()) -> FederationState:
        """Round 0: everybody holds the same A₀ and B = 0.

        Raises:
            ValueError: if B is not zero.
        """
        if any(bool(tensor.any()) for name, tensor in initial.items() if is_lora_b(name)):
            raise ValueError(
                "initial state: lora_B is not zero; wanted a fresh adapter, which leaves the base as it is"
            )
        states = {name: dict(initial) for name in sorted(departments)}
        return cls(0, initial, states, groups={name: dict(initial) for name in groups})

    def start_of(self, client_id: str) -> Mapping[str, torch.Tensor]:
        """θ_d, over it the client's cluster start, over it the client's own B; what is on disk is not read yet."""
        department = client_id.split("/", 1)[0]
        layers = (self.personal.get(client_id), self.client_starts.get(client_id), self.departments[department])
        return ChainMap(*(layer for layer in layers if layer is not None))  # type: ignore[arg-type]

    def adapter(self, department: str) -> LoraState:
        """The department's whole adapter: its factors, and what it knows beside them."""
        product = self.products.get(department)
        return side_by_side([self.departments[department], *([product] if product else [])])

    def department_examples(self) -> dict[str, int]:
        """{department: training records of all its clients heard of}; the weights in a cluster's mean."""
        totals = dict.fromkeys(self.departments, 0)
        for client_id, count in self.examples.items():
            totals[client_id.split("/", 1)[0]] += count
        return totals

    def check(self) -> None:
        """Check that all departments can be compared with the shared start.

        Raises:
            ValueError: if a state's names or shapes differ from the initial ones.
        """
        check_same_layout([self.initial, *self.departments.values(), *self.groups.values()])


def mean_personal(
    personal: Mapping[str, Mapping[str, torch.Tensor]], examples: Mapping[str, int], department: str
) -> LoraState:
    """Example-weighted mean of the clients' own B in a department; empty where nobody has one."""
    mean = WeightedMean()
    for client_id in sorted(personal):
        if client_id.split("/", 1)[0] == department:
            mean.add(personal[client_id], examples[client_id])
    return {name: tensor.float() for name, tensor in mean.value().items()} if mean.total else {}


@dataclass
class DepartmentReport:
    """How one department's clients came together in a round.

    Attributes:
        weights: {client: w_c}, summing to 1.
        residual_norms: {client: ‖θ_c − θ_d‖} over what is shared.
        drift: {client: ‖θ_c − θ_d'‖} over what is shared.
        moved: ‖θ_d' − θ_d‖.
        left_out: {client: reason} of updates that were not averaged.
        scaled: {client: factor below 1} of updates that a guard shortened.
        step_size: how much of the mean residual the department moved by, or its server step's rate.
        aggregation_error: how far the department's product is from its clients' mean product,
            ``‖Σ w s B A − P‖ / ‖Σ w s B A‖`` over all layers; under flora P is the product of the mean factors.
        layer_errors: the same by layer.
        rank_errors: {client: the same of the best product of the client's rank, which it starts from}; under svd.
        client_clusters: {client: cluster id}; empty where client clusters are off.
        epsilon: of a client of this department, over all rounds so far; None without differential privacy.
        clip: the norm to which its updates were clipped; None without differential privacy.
    """

    weights: dict[str, float] = field(default_factory=dict)
    residual_norms: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    moved: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)
    client_clusters: dict[str, int] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    step_size: float = 0.0
    aggregation_error: float | None = None
    layer_errors: dict[str, float] = field(default_factory=dict)
    rank_errors: dict[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    clip: float | None = None


@dataclass
class RoundReport:
    """What happened in a round, for the callbacks that log and draw it.

    Attributes:
        found: {group: the clusters of its members}; under `hierarchy.ROOT` those of the federation as a whole.
        bytes_sent: bytes by level, counted from the tensors shared: ``client/up``, ``client/down``, ``department/up``,
            ``department/down``, and ``client/up`` of every client under its id.
    """

    round_num: int
    departments: dict[str, DepartmentReport] = field(default_factory=dict)
    found: dict[str, Grouping] = field(default_factory=dict)
    bytes_sent: dict[str, int] = field(default_factory=dict)

    @property
    def grouping(self) -> Grouping | None:
        """The clusters of the federation as a whole."""
        return self.found.get(ROOT)
