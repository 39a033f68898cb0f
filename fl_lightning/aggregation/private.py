"""A department's step under differential privacy: clipped updates, noise, server step (`fl_lightning.privacy`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fl_lightning.aggregation.department import DepartmentStep, Residual, apply_server_step, shares, step_size_of
from fl_lightning.config import FederationConfig
from fl_lightning.privacy import default_count_noise, mean_noise_multiplier, next_clip, noisy_mean


@dataclass(frozen=True)
class DPRelease:
    """Inputs of a department's round under differential privacy that are not in the config.

    Attributes:
        key: the noise is drawn from it; for this round and department only.
        clip: C.
        asked: number of clients that were asked.
    """

    key: str
    clip: float
    asked: int


def aggregate_privately(
    config: FederationConfig,
    round_num: int,
    previous: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    optimizer_state: Mapping[str, torch.Tensor],
    release: DPRelease,
) -> DepartmentStep:
    """A department's next state from the clipped mean with noise, which is added even if no client answered.

    Args:
        config: the ``federation`` block: ``privacy``, ``flora`` and ``server``.
        round_num: from 1, for schedules.
        previous: θ_d, the shared factors.
        updates: {client_id: θ_c}, the shared factors; each is read twice.
        optimizer_state: `DepartmentStep.optimizer_state` of the round before; empty at the start.
        release: key, clipping norm and number of clients.

    Example:
        >>> from fl_lightning.config import GuardConfig, PrivacyConfig
        >>> config = FederationConfig(guard=GuardConfig("dp"), privacy=PrivacyConfig(noise_multiplier=1e-9))
        >>> clients = {"hr/a": {"lora_A": torch.tensor([9.0])}}
        >>> release = DPRelease(key="5e" * 32, clip=1.0, asked=1)
        >>> step = aggregate_privately(config, 1, {"lora_A": torch.tensor([0.0])}, clients, {}, release)
        >>> round(step.state["lora_A"].item(), 4), round(step.scaled["hr/a"], 4)  # momentum · (9 clipped to 1)
        (0.1, 0.1111)
    """
    privacy, asked = config.privacy, release.asked
    noise_multiplier, adaptive = privacy.noise_multiplier, privacy.target_quantile is not None
    count_noise = max(default_count_noise(asked), noise_multiplier)  # the paper's default is too small for few clients
    result = noisy_mean(
        {client_id: Residual(state, previous) for client_id, state in updates.items()},
        clip=release.clip,
        noise_multiplier=mean_noise_multiplier(noise_multiplier, count_noise) if adaptive else noise_multiplier,
        asked=asked,
        seed=release.key,
        like=previous,
    )
    clip = release.clip
    if privacy.target_quantile is not None:
        clip = next_clip(
            clip,
            result.below,
            present=len(updates),
            asked=asked,
            seed=release.key,
            quantile=privacy.target_quantile,
            rate=privacy.clip_rate,
            count_noise=count_noise,
        )
    target = {name: previous[name].double() + result.mean[name] for name in result.mean}
    rate = step_size_of(config, round_num)
    state, optimizer_state = apply_server_step(config, rate, previous, target, optimizer_state)
    equal = shares(dict.fromkeys(updates, 1.0))
    return DepartmentStep(state, optimizer_state, equal, {}, result.clipped, rate, clip=clip)
