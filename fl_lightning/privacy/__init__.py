"""Differential privacy for clients, central: DP-FedAvg with a server that is trusted.

A department's clients send their updates as they are. The server clips them, adds noise to their sum (`noisy_mean`),
moves the department's shared factor by the result and says what that cost (`epsilon`).

What is covered is what comes out of the noisy means: the department's shared factor after every round and all that is
computed from it, server steps with a memory included. Whoever sees it learns little about whether any one client took
part, whatever the others do. A client is in one department, so departments do not add up.

What is not covered:

- The server, and what else it keeps or writes: clients' updates, their norms, logs, checkpoints.
- Personal factors, and clusters of clients: both are made from single clients' tensors without noise.
- Choices by other private figures: the best round by clients' losses, a guard that leaves out one client because of
  the others. Weights by size or loss: in the mean all clients weigh the same.
- Who knows the key. Noise comes from a secret key of 256 bits for each department and round (`secrets.token_hex(32)`
  and a hash of what it is for), never from the run's seed: who knows the key takes the noise off again. The same goes
  for the draw of clients, if fewer are asked than there are: its amplification counts only while nobody knows it.
- Attacks on floating point (Mironov 2012): sums and noise are fp64, not exact integers.

==============================  ========================================================================================
function                        does
==============================  ========================================================================================
`noisy_mean`                    clips, sums, adds noise (McMahan et al. 2018)
`next_clip`                     the next clip, by a noisy quantile of the norms (Andrew et al. 2021)
`mean_noise_multiplier`         what the mean's noise must be where the count of clipped updates has some, too
`epsilon`                       what so many rounds cost
`noise_multiplier_for`          the noise that costs so much
==============================  ========================================================================================

Example:
    >>> import torch
    >>> residuals = {c: {"lora_A": torch.full((3,), v)} for c, v in {"hr/a": 0.1, "hr/b": 30.0}.items()}
    >>> found = noisy_mean(residuals, clip=1.0, noise_multiplier=1.0, asked=2, seed="5e" * 32)
    >>> found.mean["lora_A"].shape, found.below
    (torch.Size([3]), 1)
"""

from __future__ import annotations

from fl_lightning.privacy.accountant import epsilon, noise_multiplier_for
from fl_lightning.privacy.clipping import default_count_noise, mean_noise_multiplier, next_clip
from fl_lightning.privacy.mechanism import NoisyMean, noisy_mean

__all__ = [
    "NoisyMean",
    "default_count_noise",
    "epsilon",
    "mean_noise_multiplier",
    "next_clip",
    "noise_multiplier_for",
    "noisy_mean",
]
