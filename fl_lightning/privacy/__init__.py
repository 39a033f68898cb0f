"""Central differential privacy for clients: DP-FedAvg with a trusted server.

Without one: `secure_aggregation`, in which clients add the noise in shares.

Clients send exact updates. The server clips them, adds noise to their sum (`noisy_mean`), moves the department's shared
factor by the result, and reports the cost (`epsilon`).

Covered: all that is released from the noisy means, that is, the department's shared factor after every round and
everything computed from it, including server steps with an optimizer state. From it, nobody learns much about whether a
given client took part, whatever the other clients do. A client belongs to one department, so the costs of departments
do not add up.

Not covered:

- The server, and what it stores or writes: updates, their norms, logs, checkpoints.
- Private factors, and clusters of clients: both are computed from single clients' tensors without noise.
- Decisions based on other private numbers, such as the best round by clients' losses, a guard that rejects one client
  because of the others, or weights by size or loss. All clients have equal weight in the mean.
- Anyone who knows the key. Noise is drawn from a secret 256-bit key for each department and round
  (`secrets.token_hex(32)`, hashed with its purpose), never from the run's seed, because with the key the noise can be
  subtracted. The same holds for the random choice of clients: it amplifies privacy only while it is secret.
- Attacks on floating-point arithmetic (Mironov 2012): sums and noise are fp64, not exact integers.

=======================  ============================================================  ==========  ============
function                 does                                                          paper       file
=======================  ============================================================  ==========  ============
`noisy_mean`             clips, sums, adds noise                                       1710.06963  `mechanism`
`next_clip`              next clipping norm, from a noisy quantile of the norms        1905.03871  `clipping`
`mean_noise_multiplier`  noise of the mean if the count of clipped updates has some    1905.03871  `clipping`
`epsilon`                cost of a number of rounds                                    1905.02383  `accountant`
`epsilon_of_shares`      the same for noise that clients add in shares                 2102.06387  `accountant`
`noise_multiplier_for`   noise for a given cost                                        1805.06530  `accountant`
`gaussian`               Gaussian noise from a secret key                              FIPS 202    `noise`
`Ledger`                 rounds released so far, and the key                                       `ledger`
=======================  ============================================================  ==========  ============

`audit` has the other side: lower bounds on ε, measured from what a run releases.

Example:
    >>> import torch
    >>> residuals = {c: {"lora_A": torch.full((3,), v)} for c, v in {"hr/a": 0.1, "hr/b": 30.0}.items()}
    >>> result = noisy_mean(residuals, clip=1.0, noise_multiplier=1.0, asked=2, seed="5e" * 32)
    >>> result.mean["lora_A"].shape, result.below
    (torch.Size([3]), 1)
"""

from __future__ import annotations

from fl_lightning.privacy.accountant import epsilon, epsilon_of_shares, noise_multiplier_for
from fl_lightning.privacy.clipping import default_count_noise, mean_noise_multiplier, next_clip
from fl_lightning.privacy.mechanism import NoisyMean, noisy_mean

__all__ = [
    "NoisyMean",
    "default_count_noise",
    "epsilon",
    "epsilon_of_shares",
    "mean_noise_multiplier",
    "next_clip",
    "noise_multiplier_for",
    "noisy_mean",
]
