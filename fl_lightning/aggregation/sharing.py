"""Share policies: which LoRA factors a client trains, sends, and keeps.

===========  =======  =======  =======  ===============================================================================
name         trained  shared   private  source
===========  =======  =======  =======  ===============================================================================
`all`        A, B     A, B              FedIT, Zhang et al. 2023, arXiv 2305.05644
`a`          A, B     A        B        FedSA-LoRA, Guo et al. 2024, arXiv 2410.01463
`b`          A, B     B        A        Fed-ALoRA, Ban and Ji 2025, arXiv 2509.25414
`freeze_a`   B        B                 FFA-LoRA, Sun et al. 2024, arXiv 2403.12313
`alternate`  B or A   B or A            RoLoRA, Chen et al. 2025, arXiv 2502.01755: B in odd rounds, A in even ones
`none`       A, B              A, B     local training only: the baseline for every federated method
`central`    A, B     A, B              training on all records in one place: the upper bound for federated methods
===========  =======  =======  =======  ===============================================================================

``federation.share_layers`` limits what is shared to some decoder layers; the others stay with each client, as in FedPer
(Arivazhagan et al. 2019, arXiv 1912.00818: the lower layers are shared) and LG-FedAvg (Liang et al. 2020, arXiv
2001.01523: the upper ones).

Example:
    >>> share_policy("a").shared_factor(1), share_policy("a").private_factor
    ('a', 'b')
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch

from fl_lightning.config.federation import ShareName
from fl_lightning.errors import InputError, nearest
from fl_lightning.state import Factor, LoraState, layer_index, select


@dataclass(frozen=True)
class SharePolicy:
    """Who trains and who receives which factor in a round.

    Attributes:
        trainable_factor: the factor that clients train, by round number from 1.
        shared_factor: the factor that clients send and departments average, by round number.
        private_factor: the factor that stays with each client over all rounds. It is averaged only into the
            department's exported adapter, from which a new client starts.
        is_central: whether one client trains on the records of all clients instead.
        layers: the decoder layers that are shared; None shares all.
    """

    trainable_factor: Callable[[int], Factor]
    shared_factor: Callable[[int], Factor]
    private_factor: Factor
    is_central: bool = False
    layers: frozenset[int] | None = None

    @property
    def keeps_private(self) -> bool:
        """Whether a part of the adapter stays with each client over all rounds."""
        return self.private_factor != "none" or self.layers is not None

    def shared(self, state: Mapping[str, torch.Tensor], round_num: int) -> LoraState:
        """The tensors of a state that clients send and departments average in a round, not copied."""
        factor = select(state, self.shared_factor(round_num))
        return {name: tensor for name, tensor in factor.items() if self._is_in_shared_layer(name)}

    def private(self, state: Mapping[str, torch.Tensor]) -> LoraState:
        """The tensors of a state that stay with a client over all rounds, not copied."""
        factor = select(state, self.private_factor)
        if self.layers is None:
            return factor
        return {name: state[name] for name in state if name in factor or not self._is_in_shared_layer(name)}

    def without_private(self, state: Mapping[str, torch.Tensor]) -> LoraState:
        """The tensors of a state that a client does not keep: those that it needs before a fit, not copied."""
        private = self.private(state)
        return {name: state[name] for name in state if name not in private}

    def _is_in_shared_layer(self, name: str) -> bool:
        return self.layers is None or layer_index(name) in self.layers

    def check_layers(self, names: Collection[str]) -> None:
        """Check that the layers to share are layers of a model's adapter, and not all of them.

        Args:
            names: of the adapter's parameters.

        Raises:
            InputError: if one is not, or if none would stay with the clients.
        """
        available = {index for name in names if (index := layer_index(name)) is not None}
        if self.layers is not None and not self.layers < available:
            raise InputError(
                f"federation.share_layers: expected some of the decoder layers {sorted(available)}, not all, got "
                f"{sorted(self.layers)}; null shares all"
            )


def _always(factor: Factor) -> Callable[[int], Factor]:
    return lambda round_num: factor


def _b_then_a(round_num: int) -> Factor:
    return "b" if round_num % 2 else "a"


ALL = SharePolicy(_always("all"), _always("all"), "none")
"""Both factors. The mean of the factors is not the mean of the products: ``mean(B) mean(A) ≠ mean(B A)``; policies that
send one factor do not have this error."""

A = SharePolicy(_always("all"), _always("a"), "b")
"""A holds what clients have in common, B what is specific to each. Half of the bytes for square layers; a larger share
with grouped queries."""

B = SharePolicy(_always("all"), _always("b"), "a")
"""The counterpart of `A`: B, which starts at zero for all clients, is what they share."""

FREEZE_A = SharePolicy(_always("b"), _always("b"), "none")
"""A stays as initialized. With a common A the mean of the B gives exactly the mean of the products, and noise for
privacy is added to one factor only."""

ALTERNATE = SharePolicy(_b_then_a, _b_then_a, "none")
"""One factor a round, the other one frozen, so the mean of that factor gives exactly the mean of the products. B comes
first: it starts at zero, so the gradient of A is zero until B is trained."""

NONE = SharePolicy(_always("all"), _always("none"), "all")
"""Every client trains alone. A department's exported adapter is the weighted mean of its clients' adapters; only new
clients start from it."""

CENTRAL = SharePolicy(_always("all"), _always("all"), "none", is_central=True)
"""One client with all records; all departments have the same adapter."""

SHARE_POLICIES: dict[str, SharePolicy] = {name: globals()[name.upper()] for name in get_args(ShareName)}
"""The policies by name."""


def share_policy(name: str, layers: Collection[int] | None = None) -> SharePolicy:
    """The policy of that name, for some decoder layers or for all.

    Raises:
        InputError: if there is none.
    """
    if name not in SHARE_POLICIES:
        choices = ", ".join(SHARE_POLICIES)
        raise InputError(f"federation.share: expected one of {choices}, got {name!r}{nearest(name, SHARE_POLICIES)}")
    policy = SHARE_POLICIES[name]
    return policy if layers is None else replace(policy, layers=frozenset(layers))
