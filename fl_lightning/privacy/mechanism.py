"""DP-FedAvg: McMahan, Ramage, Talwar, Zhang 2018 (arXiv 1710.06963).

"Learning Differentially Private Recurrent Language Models". ``(Σ_c Δ_c · min(1, C / ‖Δ_c‖) + N(0, (z C)² I)) / m``:
norms over all tensors together, equal weights, and division by the number of clients that were asked (their estimator
f̃_f), which does not depend on who answered. Adding or removing one client changes the sum by at most C, whatever it
sends; z is the noise multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fl_lightning.linalg.client_matrix import Residuals
from fl_lightning.privacy.noise import gaussian
from fl_lightning.state import LoraState, norm


@dataclass(frozen=True)
class NoisyMean:
    """The result of one round of one department. Only `mean` may be released; the rest has no noise.

    Attributes:
        mean: fp64 on the CPU, names sorted.
        clipped: {client_id: C / ‖Δ_c‖} of updates longer than C.
        below: number of updates not longer than C.
    """

    mean: LoraState
    clipped: dict[str, float]
    below: int


def noisy_mean(
    residuals: Residuals,
    *,
    clip: float,
    noise_multiplier: float,
    asked: int,
    seed: str,
    like: Mapping[str, torch.Tensor] | None = None,
) -> NoisyMean:
    """Clip every update, sum, add noise, and divide by the number of clients asked.

    Args:
        residuals: {client_id: Δ_c} over what is shared; each tensor is read twice. A client that was asked and
            is missing counts as zero.
        clip: C > 0, maximum norm of an update after clipping.
        noise_multiplier: z, at least 0: the noise on each coordinate of the sum has standard deviation ``z C``.
        asked: m, number of clients asked in the round; public, and independent of who answers.
        seed: key of the noise, 64 hexadecimal digits: secret, for this department and round only.
        like: the shared factor, for names and shapes; None takes them from the first client. Pass it, since a round in
            which no client answered needs its noise too.

    Raises:
        ValueError: if an option is out of range, there are more updates than were asked for, an update's norm is not
            finite, names or shapes differ, or there are neither updates nor `like`.

    Example:
        >>> residuals = {"hr/a": {"lora_A": torch.tensor([6.0, 8.0])}, "hr/b": {"lora_A": torch.tensor([1.0, 0.0])}}
        >>> result = noisy_mean(residuals, clip=5.0, noise_multiplier=0.0, asked=4, seed="5e" * 32)
        >>> result.mean["lora_A"].tolist()  # (3 + 1) / 4, (4 + 0) / 4
        [1.0, 1.0]
        >>> result.clipped, result.below
        ({'hr/a': 0.5}, 1)
    """
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip: expected a positive finite number, got {clip}")
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier: expected a finite number of at least 0, got {noise_multiplier}")
    if asked < max(1, len(residuals)):
        raise ValueError(f"asked: expected at least 1 and the number of updates ({len(residuals)}), got {asked}")
    clients = sorted(residuals)
    if like is None and not clients:
        raise ValueError("residuals: expected at least one, or `like` with names and shapes, got none")
    reference = residuals[clients[0]] if like is None else like
    sums: LoraState = {n: torch.zeros(reference[n].shape, dtype=torch.float64) for n in sorted(reference)}
    clipped: dict[str, float] = {}
    for client_id in clients:
        length = norm(residuals[client_id])
        if not math.isfinite(length):
            raise ValueError(f"{client_id}: expected an update of finite norm, got {length}")
        if length > clip:
            clipped[client_id] = clip / length
        _add(sums, residuals[client_id], clipped.get(client_id, 1.0), client_id)
    for name, total in sums.items():
        noise = gaussian(seed, f"tensor {name}", total.numel()).view(total.shape)
        total.add_(noise, alpha=noise_multiplier * clip)
    return NoisyMean({n: total / asked for n, total in sums.items()}, clipped, len(clients) - len(clipped))


def _add(sums: LoraState, update: Mapping[str, torch.Tensor], factor: float, client_id: str) -> None:
    """Add `factor` times an update to the sums."""
    if differing := sorted(sums.keys() ^ update.keys()):
        where = "the update" if differing[0] in update else "the shared factor"
        raise ValueError(
            f"{client_id}: expected equal names in its update and the shared factor, got {differing[0]} in {where} only"
        )
    for name, total in sums.items():
        tensor = update[name].detach()
        if tensor.shape != total.shape:
            raise ValueError(f"{client_id}: {name}: expected shape {tuple(total.shape)}, got {tuple(tensor.shape)}")
        total.add_(tensor.to("cpu", torch.float64), alpha=factor)
