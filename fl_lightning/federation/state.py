"""The state of a federation between rounds: plain values that only `FederatedRound` replaces."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fl_lightning.federation.personal_mean import RunningSum
from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.linalg.own_mixture import factors_of
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.state import LoraState, check_same_layout, is_lora_b


@dataclass(frozen=True)
class BestRound:
    """The round that early stopping has taken so far for one adapter.

    Attributes:
        round_num: in which the selection records had their lowest loss.
        loss: mean over their target tokens, in nats; None if the round was given instead of measured.
        adapter: after that round, of any rank.
    """

    round_num: int
    loss: float | None
    adapter: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class FederationState:
    """Everything the next round depends on.

    Attributes:
        round_num: the last complete round; 0 before the first.
        initial: A₀ and B = 0, the common start.
        departments: {department: θ_d}.
        client_starts: {client_id: shared factor from which the client starts next}, with client clusters.
        personal: {client_id: the factor that stays with the client}, such as B under ``share: a``.
        own_adapters: {client_id: its own adapter, never averaged}, under ``personal.own: during``, with the weights
            that it has learned, see `fl_lightning.linalg.own_mixture`.
        examples: {client_id: num_examples} of every client that ever sent a valid update.
        cluster_assignments: {department or group: cluster id} of the last round.
        optimizer_states: {department: state of its server optimizer}, tensors named ``slot/parameter``.
        products: {department: what it knows besides its factors}, in SVD form and of any rank; only where the combiner
            is stack, residual or svd.
        privacy: what has been released so far, under ``guard.name: dp``.
        clustering_memory: {group: what the clustering of its members needs from the round before}, JSON values.
        groups: {group: state} of the groups above the departments.
        best: {department, group, client that shares nothing, or ``<client_id>/own``: its best round}; empty without
            early stopping. The next round does not depend on it.
        past: {``department/round``: θ_d after that round}, from which clients in flight have started, in mode buffered.
        mixtures: {department: {level: weight}} of its mixture of predictions, under ``dept_clusters.mix:
            predictions``, after the last round that was evaluated. The next round does not depend on it.
        personal_sums: {department: sum of `personal`}, where it has many clients. Checkpoints lack it, since the sum of
            the same factors is always the same.
    """

    round_num: int
    initial: LoraState
    departments: dict[str, LoraState]
    client_starts: dict[str, LoraState] = field(default_factory=dict)
    personal: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    own_adapters: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    cluster_assignments: dict[str, int] = field(default_factory=dict)
    optimizer_states: dict[str, LoraState] = field(default_factory=dict)
    products: dict[str, LoraState] = field(default_factory=dict)
    privacy: Ledger | None = None
    clustering_memory: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, LoraState] = field(default_factory=dict)
    best: dict[str, BestRound] = field(default_factory=dict)
    past: dict[str, LoraState] = field(default_factory=dict)
    mixtures: dict[str, dict[str, float]] = field(default_factory=dict)
    personal_sums: dict[str, RunningSum] = field(default_factory=dict)

    @classmethod
    def begin(cls, initial: LoraState, departments: Iterable[str], groups: Iterable[str] = ()) -> FederationState:
        """Round 0, in which all departments and groups hold the same A₀ and B = 0.

        Raises:
            ValueError: if B is not zero.
        """
        if any(bool(tensor.any()) for name, tensor in initial.items() if is_lora_b(name)):
            raise ValueError(
                "initial state: expected a fresh adapter, whose lora_B is zero, got one whose lora_B is not zero; "
                "pass the state of a model that `create_lora_model` has just made"
            )
        states = {name: dict(initial) for name in sorted(departments)}
        return cls(0, initial, states, groups={name: dict(initial) for name in groups})

    def start_of(self, client_id: str, round_num: int | None = None) -> Mapping[str, torch.Tensor]:
        """Where a client starts: its personal factor over its cluster's start over θ_d. Reads nothing from disk yet.

        Args:
            client_id: ``department/client``.
            round_num: after which it has started; None is the last one.
        """
        department = client_id.split("/", 1)[0]
        state = self.version(department, self.round_num if round_num is None else round_num)
        layers = (self.personal.get(client_id), self.client_starts.get(client_id), state)
        return ChainMap(*(layer for layer in layers if layer is not None))  # type: ignore[arg-type]

    def version(self, department: str, round_num: int) -> LoraState:
        """θ_d after a round: the last one, or one that `past` has."""
        return self.departments[department] if round_num == self.round_num else self.past[f"{department}/{round_num}"]

    def past_versions(self) -> set[tuple[str, int]]:
        """(department, round) of the states in `past`."""
        return {(department, int(number)) for department, number in (key.split("/") for key in self.past)}

    def adapter(self, department: str) -> LoraState:
        """A department's whole adapter: its factors, and its product if it has one."""
        product = self.products.get(department)
        return concatenate_adapters([self.departments[department], *([product] if product else [])])

    def final_adapter(self, name: str) -> LoraState:
        """A department's or group's adapter of the best round under early stopping, else of the last one."""
        if name in self.best:
            return dict(self.best[name].adapter)
        return self.adapter(name) if name in self.departments else self.groups[name]

    def final_own_adapter(self, client_id: str) -> LoraState:
        """The adapter that a client has trained alone, of the best round under early stopping, else of the last one.

        It is trained beside the federation or under ``share: none``; the initial adapter if the client never trained.
        """
        for best in (self.best.get(f"{client_id}/own"), self.best.get(client_id)):
            if best is not None:
                return dict(best.adapter)
        for adapter in (self.own_adapters.get(client_id), self.personal.get(client_id)):
            if adapter is not None and adapter.keys() >= self.initial.keys():  # personal may be a part of one
                return factors_of(adapter)
        return dict(self.initial)

    def department_examples(self) -> dict[str, int]:
        """{department: training records of all its known clients}, its weight in a cluster's mean."""
        totals = dict.fromkeys(self.departments, 0)
        for client_id, count in self.examples.items():
            totals[client_id.split("/", 1)[0]] += count
        return totals

    def check(self) -> None:
        """Check that all departments and groups can be compared with the initial state.

        Raises:
            ValueError: if a state's names or shapes differ from the initial ones.
        """
        check_same_layout([self.initial, *self.departments.values(), *self.groups.values()])


def clients_by_department(client_ids: Iterable[str]) -> dict[str, list[str]]:
    """{department: its client ids}, both in the order given.

    Example:
        >>> clients_by_department(["hr/b", "it/a", "hr/a"])
        {'hr': ['hr/b', 'hr/a'], 'it': ['it/a']}
    """
    departments: dict[str, list[str]] = {}
    for client_id in client_ids:
        departments.setdefault(client_id.split("/", 1)[0], []).append(client_id)
    return departments
