"""DP-FedAvg: McMahan, Ramage, Talwar, Zhang 2018 (arXiv 1710.06963).

"Learning Differentially Private Recurrent Language Models". ``(Σ_c Δ_c · min(1, C / ‖Δ_c‖) + N(0, (z C)² I)) / m``:
norms over all tensors together, every client with the same weight, and divided by how many were asked (their estimator
f̃_f), a number that does not depend on who answered. One client more or less moves the sum by at most C, whatever it
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
    """What one round of one department comes to. Only `mean` may be released: the rest has no noise.

    Attributes:
        mean: fp64 on the CPU, names sorted.
        clipped: {client_id: C / ‖Δ_c‖} of those whose update was longer than C.
        below: how many updates were not.
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
    """Clip every update, add them, add noise to the sum, divide by how many were asked.

    Args:
        residuals: {client_id: Δ_c} over what is shared; each tensor is read twice. Who was asked and is not here
            counts as zero.
        clip: C > 0, what an update's norm is cut down to.
        noise_multiplier: z, at least 0: the noise on each coordinate of the sum has standard deviation ``z C``.
        asked: m, how many clients the round asked; public and the same whoever answers.
        seed: the noise's key, 64 hexadecimal digits: secret, and for this department and round only.
        like: the shared factor, for its names and shapes; None takes them from the first client. Give it: a round in
            which nobody answered must have its noise too.

    Raises:
        ValueError: an option is out of range, more updates than were asked for, an update's norm is not finite, names
            or shapes differ, or neither updates nor `like`.

    Example:
        >>> residuals = {"hr/a": {"lora_A": torch.tensor([6.0, 8.0])}, "hr/b": {"lora_A": torch.tensor([1.0, 0.0])}}
        >>> found = noisy_mean(residuals, clip=5.0, noise_multiplier=0.0, asked=4, seed="5e" * 32)
        >>> found.mean["lora_A"].tolist()  # (3 + 1) / 4, (4 + 0) / 4
        [1.0, 1.0]
        >>> found.clipped, found.below
        ({'hr/a': 0.5}, 1)
    """
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip: got {clip}, wanted a positive finite number")
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier: got {noise_multiplier}, wanted a finite number of at least 0")
    if asked < max(1, len(residuals)):
        raise ValueError(f"asked: got {asked} and {len(residuals)} updates, wanted at least 1 and no more updates")
    clients = sorted(residuals)
    if like is None and not clients:
        raise ValueError("residuals: got none, wanted at least one, or like with the names and shapes")
    reference = residuals[clients[0]] if like is None else like
    sums: LoraState = {n: torch.zeros(reference[n].shape, dtype=torch.float64) for n in sorted(reference)}
    clipped: dict[str, float] = {}
    for client_id in clients:
        length = norm(residuals[client_id])
        if not math.isfinite(length):
            raise ValueError(f"{client_id}: the update's norm is {length}, wanted a finite number")
        if length > clip:
            clipped[client_id] = clip / length
        _add(sums, residuals[client_id], clipped.get(client_id, 1.0), client_id)
    for name, total in sums.items():
        noise = gaussian(seed, f"tensor {name}", total.numel()).view(total.shape)
        total.add_(noise, alpha=noise_multiplier * clip)
    return NoisyMean({n: total / asked for n, total in sums.items()}, clipped, len(clients) - len(clipped))


def _add(sums: LoraState, update: Mapping[str, torch.Tensor], factor: float, client_id: str) -> None:
    """Add `factor` times an update to the sums."""
    if odd := sorted(sums.keys() ^ update.keys()):
        raise ValueError(f"{client_id}: {odd[0]} is not in both its update and the shared factor; wanted equal names")
    for name, total in sums.items():
        tensor = update[name].detach()
        if tensor.shape != total.shape:
            got, wanted = tuple(tensor.shape), tuple(total.shape)
            raise ValueError(f"{client_id}: {name} has shape {got}, wanted {wanted}")
        total.add_(tensor.to("cpu", torch.float64), alpha=factor)
