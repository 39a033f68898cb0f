"""The factors from which clients start a round, for every combiner."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fl_lightning.config.federation import CombinerName
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.adapter_algebra import from_svd_form
from fl_lightning.linalg.truncation import truncate
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState, is_lora_a, is_lora_b


class ClientStarts:
    """Start factors of the clients of one round; clients of equal department, rank and scale share one start.

    Args:
        combiner: how departments combine their clients.
        state: of the federation, before the round.
        round_num: of the round.
        seed: the run seed. New rows of A are drawn from seeds hashed from it and the round, the same for all clients.
    """

    def __init__(self, combiner: CombinerName, state: FederationState, round_num: int, seed: int) -> None:
        self.combiner, self.state, self.round_num, self.seed = combiner, state, round_num, seed
        self._cache: dict[tuple[str, int, float], LoraState] = {}

    def of(
        self, client_id: str, rank: int, relative_scaling: float = 1.0
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
        """A client's (factors to train, product that is added to them and not trained)."""
        department = client_id.split("/", 1)[0]
        product = self.state.products.get(department, {})
        if self.combiner in ("flora", "fedavg", "residual"):
            return self.state.start_of(client_id), product
        key = (department, rank, relative_scaling) if self.combiner == "svd" else ("", rank, 1.0)
        if key not in self._cache:
            truncated = self.combiner == "svd" and product
            self._cache[key] = self._top_singular(product, rank, relative_scaling) if truncated else self._fresh(rank)
        return self._cache[key], product if self.combiner == "stack" else {}

    def _top_singular(self, product: LoraState, rank: int, relative_scaling: float) -> LoraState:
        """The best product of that rank at the client's scale; rows of A₀ if P_d has a lower rank."""
        return truncate(from_svd_form(product), rank, relative_scaling, self._rows(rank, 1)).state

    def _fresh(self, rank: int) -> LoraState:
        """A new A and B = 0.

        Under stack A is drawn anew each round; otherwise the product would stay in one row
        space.
        """
        start = self._rows(rank, self.round_num)
        for name, tensor in self.state.initial.items():
            if is_lora_b(name):
                start[name] = torch.zeros(tensor.shape[0], rank)
        return dict(sorted(start.items()))

    def _rows(self, rank: int, draw: int) -> LoraState:
        """`rank` rows for every A, uniform as PEFT draws them; the first draw starts with the rows of A₀."""
        rows = {}
        for name, tensor in self.state.initial.items():
            if is_lora_a(name):
                initial = tensor[:rank] if draw == 1 else tensor[:0]
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "rows", draw, name))
                bound = 1 / math.sqrt(tensor.shape[1])
                drawn = torch.empty(rank, tensor.shape[1]).uniform_(-bound, bound, generator=generator)
                rows[name] = torch.cat([initial, drawn[len(initial) :]])
        return rows
