"""From clients' updates to a department's next state: weigh, guard, average, step.

``θ_d' = step(θ_d, Σ w_c s_c (θ_c − θ_d) / Σ w_c)`` over what is sent: the weights by
`fl_lightning.aggregation.weighting`, the selection and the factors s_c by `fl_lightning.aggregation.robust`, the step
by `fl_lightning.aggregation.server_optimizers`. With the defaults that is ``θ_d + momentum Σ w_c (θ_c − θ_d)``, FLoRA's
residual aggregation. The combiners that keep products weigh, and do the rest in
`fl_lightning.aggregation.products.department_product`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fl_lightning import flora
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS, combine_products
from fl_lightning.aggregation.robust import Selection, make_guard, weighted_center
from fl_lightning.aggregation.server_optimizers import make_server_step
from fl_lightning.aggregation.server_optimizers.step_size import step_size
from fl_lightning.aggregation.weighting import ClientStats, make_weighting
from fl_lightning.config import FederationConfig
from fl_lightning.flora import WeightedMean
from fl_lightning.privacy import default_count_noise, mean_noise_multiplier, next_clip, noisy_mean
from fl_lightning.state import LoraState, distance, norm


@dataclass(frozen=True)
class DPRelease:
    """What a department's round under differential privacy goes by, besides the config.

    Attributes:
        key: what the noise is drawn from, of this round alone.
        clip: C.
        asked: clients that were asked.
    """

    key: str
    clip: float
    asked: int


@dataclass(frozen=True)
class DepartmentStep:
    """A department's next state and how it came about.

    Attributes:
        state: θ_d', over what is sent.
        optimizer_state: what the server step remembers, tensors named ``letter/parameter``.
        weights: {client_id: share in the mean}, summing to 1; empty for guards that judge coordinate by coordinate.
        rejected: {client_id: reason}.
        scaled: {client_id: factor below 1}.
        step_size: of this round.
        product: P_d, where the combiner keeps one.
        rank_errors: {client_id: relative error of what it starts from next}, under svd.
        clip: C of the next round, under dp.
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


class Residual(Mapping[str, torch.Tensor]):
    """θ_c − θ_d in fp64, worked out tensor by tensor as it is read: θ_c may be on the disk."""

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
    dp_release: DPRelease | None = None,
) -> DepartmentStep:
    """A department's next state.

    Args:
        config: the ``federation`` block: ``weighting``, ``guard``, ``flora`` and ``server``.
        round_num: from 1; some schedules go by it.
        previous: θ_d, over what is sent.
        updates: {client_id: θ_c}, over what is sent, all finite and of the layout of `previous`; of any rank where the
            combiner takes that.
        stats: {client_id: figures}, of the same clients.
        optimizer_state: `DepartmentStep.optimizer_state` of the round before; empty at the start.
        measured: what ``weighting: contribution`` goes by, see `fl_lightning.aggregation.weighting.contribution`.
        product: P_d before, where the combiner keeps one.
        relative_scalings: {client_id: its scale over the common one}; 1 where None.
        dp_release: wanted where the guard is dp.

    Raises:
        ValueError: if the guard cannot work with so few clients.

    Example:
        >>> clients = {"hr/a": {"lora_A": torch.tensor([1.0])}, "hr/b": {"lora_A": torch.tensor([4.0])}}
        >>> stats = {"hr/a": ClientStats(1, 10), "hr/b": ClientStats(3, 10)}
        >>> got = aggregate_department(FederationConfig(), 1, {"lora_A": torch.tensor([0.0])}, clients, stats, {})
        >>> round(got.state["lora_A"].item(), 4), got.weights
        (0.325, {'hr/a': 0.25, 'hr/b': 0.75})
    """
    if dp_release is not None:
        return _private(config, round_num, previous, updates, optimizer_state, dp_release)
    given = make_weighting(config.weighting, **(measured or {}))(stats)
    weights = {client_id: weight for client_id, weight in given.items() if weight > 0}
    rejected = dict.fromkeys(given.keys() - weights.keys(), f"weight 0 by {config.weighting}")
    scales: dict[str, float] = {}
    if config.combiner in KEEP_PRODUCTS:
        scalings = {c: 1.0 if relative_scalings is None else relative_scalings[c] for c in weights}
        received = {c: updates[c] for c in weights}
        found = combine_products(config.combiner, previous, product or {}, received, weights, scalings)
        shares = _shares(weights)
        errors = found.rank_errors
        return DepartmentStep(found.factors, {}, shares, rejected, {}, 1.0, found.product, errors)
    if config.guard.name == "none" and _is_flora(config):
        size = _step_size(config, round_num, previous, {}, updates, weights, scales)
        use_residual = config.combiner == "flora" and config.flora.use_residual
        if size > 0 or not use_residual:  # a schedule may end at 0
            items = ((updates[client_id], weight) for client_id, weight in weights.items())
            state = flora.flora_weighted_aggregate(items, previous, size, use_residual)
            return DepartmentStep(state, {}, _shares(weights), rejected, {}, size)
    if config.guard.name == "none":
        mean = WeightedMean()
        for client_id, weight in weights.items():
            mean.add(updates[client_id], weight)
        target = mean.value()
    else:
        residuals = {c: Residual(updates[c], previous) for c in weights}
        judged = make_guard(config.guard.name, **_options(config))(residuals, weights)
        if isinstance(judged, Selection):
            middle, weights, scales = weighted_center(residuals, judged), judged.weights, judged.scales
            rejected.update(judged.rejected)
        else:
            middle, weights = judged, {}
        target = {name: previous[name].double() + middle[name].double() for name in middle}
    size = _step_size(config, round_num, previous, target, updates, weights, scales)
    state, remembered = _moved(config, size, previous, target, optimizer_state)
    scaled = {client_id: scale for client_id, scale in scales.items() if scale < 1}
    return DepartmentStep(state, remembered, _shares(weights), rejected, scaled, size)


def _is_flora(config: FederationConfig) -> bool:
    """Whether the step is that of `flora.flora_weighted_aggregate`: plain, of a size that the updates do not change."""
    return config.server.step == "sgd" and config.server.schedule != "agreement"


def _private(
    config: FederationConfig,
    round_num: int,
    previous: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    optimizer_state: Mapping[str, torch.Tensor],
    dp_release: DPRelease,
) -> DepartmentStep:
    """A department's next state from the clipped mean with noise; it has its noise even where nobody answered."""
    numbers, z, asked = config.privacy, config.privacy.noise_multiplier, dp_release.asked
    adaptive = numbers.target_quantile is not None
    count_noise = max(default_count_noise(asked), z)  # the paper's, but for few clients as much as goes with z
    found = noisy_mean(
        {client_id: Residual(state, previous) for client_id, state in updates.items()},
        clip=dp_release.clip,
        noise_multiplier=mean_noise_multiplier(z, count_noise) if adaptive else z,
        asked=asked,
        seed=dp_release.key,
        like=previous,
    )
    clip = dp_release.clip
    if numbers.target_quantile is not None:
        clip = next_clip(
            clip,
            found.below,
            present=len(updates),
            asked=asked,
            seed=dp_release.key,
            quantile=numbers.target_quantile,
            rate=numbers.clip_rate,
            count_noise=count_noise,
        )
    target = {name: previous[name].double() + found.mean[name] for name in found.mean}
    size = _step_size(config, round_num, previous, target, updates, {}, {})
    state, remembered = _moved(config, size, previous, target, optimizer_state)
    shares = _shares(dict.fromkeys(updates, 1.0))
    return DepartmentStep(state, remembered, shares, {}, found.clipped, size, clip=clip)


def _moved(
    config: FederationConfig,
    size: float,
    previous: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, torch.Tensor],
) -> tuple[LoraState, LoraState]:
    """(next state, optimizer state) after a step towards the target, or the target itself without a step."""
    if config.combiner == "flora" and config.flora.use_residual:
        return _server_step(config, size, previous, target, optimizer_state)
    return {name: tensor.float() for name, tensor in target.items()}, {}


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {client_id: weight / total for client_id, weight in weights.items()}


def _step_size(
    config: FederationConfig,
    round_num: int,
    previous: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float],
) -> float:
    server, norms = config.server, {}
    if server.schedule == "agreement":
        lengths = {c: w * scales.get(c, 1.0) * distance(updates[c], previous) for c, w in weights.items()}
        norms = {
            "norm_of_mean": norm({name: tensor - previous[name].double() for name, tensor in target.items()}),
            "mean_of_norms": sum(lengths.values()) / sum(weights.values()),
        }
    return step_size(
        server.schedule,
        round_num,
        momentum=config.flora.momentum,
        end=server.end,
        rounds=server.schedule_rounds,
        **norms,
    )


def _server_step(
    config: FederationConfig,
    size: float,
    previous: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, torch.Tensor],
) -> tuple[LoraState, LoraState]:
    server = config.server
    adaptive = {"beta1": server.beta1, "beta2": server.beta2, "tau": server.tau}
    options = {"sgd": {}, "fedavgm": {"beta": server.beta1}, "fedadagrad": {"tau": server.tau}}
    step = make_server_step(server.step, **options.get(server.step, adaptive))
    letters: dict[str, LoraState] = {}
    for key, tensor in optimizer_state.items():
        letter, name = key.split("/", 1)
        letters.setdefault(letter, {})[name] = tensor
    residual = {name: tensor - previous[name].double() for name, tensor in target.items()}
    state, remembered = step(previous, residual, letters, rate=size)
    return state, {f"{letter}/{name}": t for letter, tensors in remembered.items() for name, t in tensors.items()}


def _options(config: FederationConfig) -> dict[str, float | None]:
    """The keys of the ``guard`` block that its guard takes."""
    guard = config.guard
    taken: dict[str, dict[str, float | None]] = {
        "norm_clip": {"max_norm": guard.max_norm},
        "outlier": {"min_cosine": guard.min_cosine, "max_z": guard.max_z},
        "krum": {"f": guard.f},
        "multi_krum": {"f": guard.f},
        "trimmed_mean": {"fraction": guard.fraction},
    }
    return taken.get(guard.name, {})
