"""What weighs each client's own product against the one beside it, where the weight is learned.

    h = W0 x + s (p B_v A_v x + (1 − p) B_w A_w x)

p is α of the token's client (APFL, Deng et al. 2020, arXiv 2003.13461), or the first of the two values of
softmax(W_G x) by a gate W_G of client and layer (FedALT, Bian et al. 2025, arXiv 2503.11880). The gate sees x without
dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fl_lightning.linalg.own_mixture import ALPHA, GATE, is_gated
from fl_lightning.modeling.cohort_row import CohortRow
from fl_lightning.modeling.low_rank_product import low_rank_product
from fl_lightning.modeling.stacked_factors import StackedFactor
from fl_lightning.state import LoraState


class CohortMixer:
    """The weights of K clients.

    Args:
        states: own states of the clients, see `fl_lightning.linalg.own_mixture`; at least one has a weight. Those that
            have none use their own product as it is.
        layers: names of the LoRA layers.
        device: of the parameters.

    Attributes:
        alphas: α of each client, shape (K,).
        gates: of each client in all layers; None without any.
    """

    def __init__(
        self, states: Sequence[Mapping[str, torch.Tensor]], layers: Sequence[str], device: torch.device
    ) -> None:
        alphas = [state[ALPHA].float() if ALPHA in state else torch.ones(1) for state in states]
        self.alphas = torch.nn.Parameter(torch.cat(alphas).to(device), requires_grad=False)
        self.gates: StackedFactor | None = None
        self._layers, self._has_alphas = layers, any(ALPHA in state for state in states)
        self._is_gated = torch.tensor([is_gated(state) for state in states], device=device)
        if any(map(is_gated, states)):
            widths = [states[0][f"{layer}.lora_A.weight"].shape[1] for layer in layers]
            gates = [
                [s.get(f"{layer}{GATE}", torch.zeros(2, width)) for layer, width in zip(layers, widths, strict=True)]
                for s in states
            ]
            self.gates = StackedFactor(gates, 0, device, trainable=True)
        self._row, self._own = CohortRow(None), torch.ones(1)
        self._by_layer: dict[str, torch.Tensor] = {}

    @staticmethod
    def of(
        states: Sequence[Mapping[str, torch.Tensor]], layers: Sequence[str], device: torch.device
    ) -> CohortMixer | None:
        """The mixer of own states; None if no weight of theirs is learned."""
        has_weights = any(ALPHA in state or is_gated(state) for state in states)
        return CohortMixer(states, layers, device) if has_weights else None

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains with the factors: the gates; row k is client k."""
        return [] if self.gates is None else [self.gates.parameter]

    def set_row(self, row: CohortRow, dtype: torch.dtype) -> None:
        """Weigh the tokens of the next row, whose layers compute in a dtype."""
        self._row, several = row, row.clients is not None
        if self.gates is None:
            self._own = (self.alphas[row.owners][:, None] if several else self.alphas).to(dtype)
            return
        by_layer = self.gates.by_layer(self.gates.parameter.to(dtype))
        self._by_layer = dict(zip(self._layers, by_layer, strict=True))
        self._own = (~self._is_gated[row.owners])[:, None] if several else ~self._is_gated

    def mix(self, layer: str, x: torch.Tensor, own: torch.Tensor, beside: torch.Tensor | None) -> torch.Tensor:
        """The weighted sum of what the two products give for the tokens of the row.

        Args:
            layer: name of the layer.
            x: its input, shape (…, in_features).
            own: ``B_v A_v x`` of each token, shape (…, out_features).
            beside: ``B_w A_w x`` likewise; None for zeros.
        """
        if self.gates is None:
            weights: tuple[torch.Tensor, ...] = (self._own, 1 - self._own)
        else:
            gate = self._by_layer[layer]
            same = torch.eye(gate.shape[1], dtype=x.dtype, device=x.device).repeat(len(gate), 1, 1)
            logits = low_rank_product(x, gate, same, self._row.clients)[..., :2]
            shares = logits.float().softmax(-1).to(x.dtype)
            shares = torch.where(self._own, torch.tensor([1, 0], dtype=x.dtype, device=x.device), shares)
            weights = torch.split(shares, 1, dim=-1)
        return weights[0] * own if beside is None else weights[0] * own + weights[1] * beside

    def state(self, index: int) -> LoraState:
        """The weights of one client, as copies on the CPU."""
        state = {ALPHA: self.alphas.detach()[index : index + 1].to("cpu", copy=True)} if self._has_alphas else {}
        if self.gates is not None:
            gates = self.gates.of_client(self.gates.parameter, index)
            state |= {f"{layer}{GATE}": gate for layer, gate in zip(self._layers, gates, strict=True)}
        return state

    def descent(self, rate: float) -> torch.optim.SGD:
        """Gradient descent on the alphas, which get gradients from now on until `end_step`."""
        self.alphas.requires_grad_(True)
        return torch.optim.SGD([self.alphas], lr=rate)

    @torch.no_grad()
    def end_step(self) -> None:
        """Clip the alphas to [0, 1] after their step; no later row gives them gradients."""
        self.alphas.clamp_(0, 1).requires_grad_(False)
        self.alphas.grad = None
