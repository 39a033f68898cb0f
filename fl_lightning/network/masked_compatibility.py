"""What does not go with secure aggregation between machines, beside what does not go with it at all.

The latter is in `fl_lightning.config.secure_compatibility`.
"""

from __future__ import annotations

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError


def check_masked(config: RunConfig) -> None:
    """Check that nothing shows a single site's update beside the masked sum.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    network, federation = config.network, config.federation
    if not federation.secure_aggregation:
        return
    choices = {
        "federation.privacy.noise_seed": (
            federation.noise_in_shares and federation.privacy.noise_seed is not None,
            "null",
            federation.privacy.noise_seed,
            "all sites have the same config, and noise that others know can be taken off",
        ),
        "network.transport": (
            network.transport != "fp32",
            "fp32",
            network.transport,
            "masked numbers are random, and have 32 bits whatever an update is rounded to",
        ),
        "network.lend": (
            network.lend != "off",
            "off",
            network.lend,
            "own adapters are lent as they are, and one of the first round is the site's update",
        ),
    }
    for key, (is_chosen, expected, got, reason) in choices.items():
        if is_chosen:
            raise InputError(
                f"{key}: {reason}; expected {expected} between machines with federation.secure_aggregation: true, "
                f"got {got}"
            )
