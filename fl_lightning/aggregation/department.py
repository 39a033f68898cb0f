"""From clients' updates to a department's next state: weights → robust mean → server step.

``θ_d' = step(θ_d, Σ w_c s_c (θ_c − θ_d) / Σ w_c)`` over the shared factors:

1. weights w_c: `fl_lightning.aggregation.weighting`;
2. which clients count, and factors s_c: `fl_lightning.aggregation.robust`;
3. the step: `fl_lightning.aggregation.server_optimizers`.

By default this is FLoRA's residual aggregation, ``θ_d + momentum Σ w_c (θ_c − θ_d)``, and is computed by
`fl_lightning.flora.flora_weighted_aggregate`. Combiners that keep products take the weights and continue in
`fl_lightning.aggregation.products.department_product`; under differential privacy the step is
`fl_lightning.aggregation.private`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fl_lightning import flora
from fl_lightning.aggregation import registry
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS, combine_products
from fl_lightning.aggregation.robust import GUARDS, Selection, make_guard, weighted_center
from fl_lightning.aggregation.server_optimizers import make_server_step, options_of
from fl_lightning.aggregation.server_optimizers.step_size import step_size
from fl_lightning.aggregation.weighting import ClientStats, make_weighting
from fl_lightning.config import FederationConfig
from fl_lightning.state import LoraState, distance, norm

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.session import SecureMean


@dataclass(frozen=True)
class DepartmentStep:
    """A department's next state and how it was computed.

    Attributes:
        state: θ_d', the shared factors.
        optimizer_state: of the server optimizer, tensors named ``slot/parameter``.
        weights: {client_id: share in the mean}, summing to 1; empty for guards by coordinate.
        rejected: {client_id: reason}.
        scaled: {client_id: factor below 1}.
        step_size: of this round.
        product: P_d, if the combiner keeps one.
        rank_errors: {client_id: relative error of the product from which it starts next}, under svd.
        clip: C of the next round, under differential privacy.
        masked: what the server knows of the clients, under secure aggregation.
    """

    state: LoraState
    optimizer_state: LoraState = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    step_size: float = 0.0
    product: LoraState = field(default_factory=dict)
    rank_errors: dict[str, float] = field(default_factory=dict)
    clip: float | None = None
    masked: SecureMean | None = None


class Residual(Mapping[str, torch.Tensor]):
    """θ_c − θ_d in fp64, computed for each tensor when it is read, since θ_c may be on disk."""

    def __init__(self, state: Mapping[str, torch.Tensor], previous: Mapping[str, torch.Tensor]) -> None:
        self._state, self._previous = state, previous

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self._state[name].double() - self._previous[name].double()

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def aggregate_department(
    config: FederationConfig,
    round_num: int,
    previous: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    stats: Mapping[str, ClientStats],
    optimizer_state: Mapping[str, torch.Tensor],
    measured: Mapping[str, Any] | None = None,
    *,
    product: Mapping[str, torch.Tensor] | None = None,
    relative_scalings: Mapping[str, float] | None = None,
) -> DepartmentStep:
    """A department's next state.

    Args:
        config: the ``federation`` block: ``weighting``, ``combiner``, ``guard``, ``flora`` and ``server``.
        round_num: from 1, for schedules.
        previous: θ_d, the shared factors.
        updates: {client_id: θ_c}, the shared factors; all finite, with the names and shapes of `previous` (ranks may
            differ if the combiner allows it). Each is read once, one at a time, so they may be on disk.
        stats: {client_id: inputs of its weight}, of the same clients.
        optimizer_state: `DepartmentStep.optimizer_state` of the round before; empty at the start.
        measured: inputs of ``weighting: contribution``, see `fl_lightning.aggregation.weighting.contribution`.
        product: P_d of the round before, if the combiner keeps one.
        relative_scalings: {client_id: its scale divided by the common one}; None means 1 for all.

    Raises:
        ValueError: if the guard needs more clients.

    Example:
        >>> clients = {"hr/a": {"lora_A": torch.tensor([1.0])}, "hr/b": {"lora_A": torch.tensor([4.0])}}
        >>> stats = {"hr/a": ClientStats(1, 10), "hr/b": ClientStats(3, 10)}
        >>> step = aggregate_department(FederationConfig(), 1, {"lora_A": torch.tensor([0.0])}, clients, stats, {})
        >>> round(step.state["lora_A"].item(), 4), step.weights
        (0.325, {'hr/a': 0.25, 'hr/b': 0.75})
    """
    all_weights = make_weighting(config.weighting, **(measured or {}))(stats)
    weights = {client_id: weight for client_id, weight in all_weights.items() if weight > 0}
    rejected = dict.fromkeys(all_weights.keys() - weights.keys(), f"weight 0 by {config.weighting}")
    if config.combiner in KEEP_PRODUCTS:
        scalings = {c: 1.0 if relative_scalings is None else relative_scalings[c] for c in weights}
        weighted = {c: updates[c] for c in weights}
        combined = combine_products(config.combiner, previous, product or {}, weighted, weights, scalings)
        return DepartmentStep(
            combined.factors,
            weights=shares(weights),
            rejected=rejected,
            step_size=1.0,
            product=combined.product,
            rank_errors=combined.rank_errors,
        )
    if config.guard.name == "none" and config.server.step == "sgd" and config.server.schedule != "agreement":
        rate = step_size_of(config, round_num)
        if 0 < rate <= 1:  # a schedule may end at 0, which FLoRA refuses
            items = ((updates[client_id], weight) for client_id, weight in weights.items())
            state = flora.flora_weighted_aggregate(items, previous, rate, takes_step(config))
            return DepartmentStep(state, weights=shares(weights), rejected=rejected, step_size=rate)
    scales: dict[str, float] = {}
    if config.guard.name == "none":
        mean = flora.WeightedMean()
        for client_id, weight in weights.items():
            mean.add(updates[client_id], weight)
        target = mean.value()
    else:
        residuals = {c: Residual(updates[c], previous) for c in weights}
        result = make_guard(config.guard.name, **_guard_options(config))(residuals, weights)
        if isinstance(result, Selection):
            center, weights, scales = weighted_center(residuals, result), result.weights, result.scales
            rejected.update(result.rejected)
        else:
            center, weights = result, {}
        target = {name: previous[name].double() + center[name].double() for name in center}
    norms = _norms(previous, target, updates, weights, scales) if config.server.schedule == "agreement" else {}
    rate = step_size_of(config, round_num, **norms)
    state, optimizer_state = apply_server_step(config, rate, previous, target, optimizer_state)
    scaled = {client_id: scale for client_id, scale in scales.items() if scale < 1}
    return DepartmentStep(state, optimizer_state, shares(weights), rejected, scaled, rate)


def takes_step(config: FederationConfig) -> bool:
    """Whether the department steps towards the mean; otherwise it takes the mean."""
    return config.combiner == "flora" and config.flora.use_residual


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights normalized to a sum of 1."""
    total = sum(weights.values())
    return {client_id: weight / total for client_id, weight in weights.items()}


def step_size_of(config: FederationConfig, round_num: int, **norms: float) -> float:
    """The step size of a round; `norms` are the inputs of the schedule ``agreement``."""
    server = config.server
    momentum, rounds = config.flora.momentum, server.schedule_rounds
    return step_size(server.schedule, round_num, momentum=momentum, end=server.end, rounds=rounds, **norms)


def apply_server_step(
    config: FederationConfig,
    rate: float,
    previous: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, torch.Tensor],
) -> tuple[LoraState, LoraState]:
    """(next state, optimizer state) after the configured server step towards a mean in fp64, or the mean itself.

    Args:
        config: the ``federation`` block.
        rate: step size.
        previous: θ_d.
        target: the mean.
        optimizer_state: of the round before, tensors named ``slot/parameter``.
    """
    if not takes_step(config):
        return {name: tensor.float() for name, tensor in target.items()}, {}
    server = config.server
    options = {option: getattr(server, option) for option in options_of(server.step) if hasattr(server, option)}
    step = make_server_step(server.step, **options)
    slots: dict[str, LoraState] = {}
    for key, tensor in optimizer_state.items():
        slot, name = key.split("/", 1)
        slots.setdefault(slot, {})[name] = tensor
    residual = {name: tensor - previous[name].double() for name, tensor in target.items()}
    state, slots = step(previous, residual, slots, rate=rate)
    return state, {f"{slot}/{name}": t for slot, tensors in slots.items() for name, t in tensors.items()}


def _norms(
    previous: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float],
) -> dict[str, float]:
    """Norm of the mean residual, and mean of the residuals' norms."""
    lengths = {c: w * scales.get(c, 1.0) * distance(updates[c], previous) for c, w in weights.items()}
    return {
        "norm_of_mean": norm({name: tensor - previous[name].double() for name, tensor in target.items()}),
        "mean_of_norms": sum(lengths.values()) / sum(weights.values()),
    }


def _guard_options(config: FederationConfig) -> dict[str, Any]:
    """The keys of the ``guard`` block that are options of the chosen guard."""
    options = registry.options_of(GUARDS[config.guard.name])
    return {option: getattr(config.guard, option) for option in options if hasattr(config.guard, option)}
