"""What weighs each client's own product against the one beside it, where the weight is learned.

    h = W0 x + s (p B_v A_v x + (1 − p) B_w A_w x)

p is α of the token's client (APFL, Deng et al. 2020, arXiv 2003.13461).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fl_lightning.linalg.own_mixture import ALPHA
from fl_lightning.modeling.cohort_row import CohortRow
from fl_lightning.state import LoraState


class CohortMixer:
    """The weights of K clients.

    Args:
        states: own states of the clients, see `fl_lightning.linalg.own_mixture`; at least one has a weight.
        device: of the parameters.

    Attributes:
        alphas: α of each client, shape (K,).
    """

    def __init__(self, states: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> None:
        alphas = [state[ALPHA].float() if ALPHA in state else torch.ones(1) for state in states]
        self.alphas = torch.nn.Parameter(torch.cat(alphas).to(device), requires_grad=False)
        self._own: torch.Tensor = self.alphas

    @staticmethod
    def of(states: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> CohortMixer | None:
        """The mixer of own states; None if no weight of theirs is learned."""
        return CohortMixer(states, device) if any(ALPHA in state for state in states) else None

    def set_row(self, row: CohortRow) -> None:
        """Weigh the tokens of the next row."""
        self._own = self.alphas if row.clients is None else self.alphas[row.owners][:, None]

    def mix(self, own: torch.Tensor, beside: torch.Tensor | None) -> torch.Tensor:
        """The weighted sum of what the two products give for the tokens of the row.

        Args:
            own: ``B_v A_v x`` of each token, shape (…, out_features).
            beside: ``B_w A_w x`` likewise; None for zeros.
        """
        weights = self._own.to(own.dtype)
        return weights * own if beside is None else weights * own + (1 - weights) * beside

    def state(self, index: int) -> LoraState:
        """The weights of one client, as copies on the CPU."""
        return {ALPHA: self.alphas.detach()[index : index + 1].to("cpu", copy=True)}

    def descent(self, rate: float) -> torch.optim.SGD:
        """Gradient descent on the alphas, which get gradients from now on until `end_step`."""
        self.alphas.requires_grad_(True)
        return torch.optim.SGD([self.alphas], lr=rate)

    @torch.no_grad()
    def end_step(self) -> None:
        """Clip the alphas to [0, 1] after their step; no later row gives them gradients."""
        self.alphas.clamp_(0, 1).requires_grad_(False)
        self.alphas.grad = None
