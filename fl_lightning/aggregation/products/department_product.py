"""Departments that keep products: what ``stack``, ``residual`` and ``svd`` make of a round, and where clients start.

Nothing is written into the base model. What the papers fold into it stands beside the factors as one low-rank product
per department, in singular vectors and of as many as it takes: P_d. So the base may be in 4 bit, one base serves all
departments, and an exported adapter is a plain LoRA adapter that holds everything.

==========  ============================  ===================  ======================================
combiner    clients start from            frozen beside them   after the round
==========  ============================  ===================  ======================================
stack       a fresh A, B = 0              P_d                  P_d + Σ w_c s_c B_c A_c
residual    B̄, Ā                          P_d                  P_d + Σ w_c s B_c A_c − s B̄ Ā
svd         the best rank r_c of P_d      nothing              Σ w_c s_c B_c A_c
==========  ============================  ===================  ======================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from fl_lightning.aggregation.products.residual import average_with_residual
from fl_lightning.aggregation.products.stacking import stack_factors
from fl_lightning.federation.state import FederationState
from fl_lightning.linalg.adapter_algebra import add_products, layers_of, to_svd_form
from fl_lightning.linalg.factors import pair_names
from fl_lightning.linalg.truncation import decompose, truncate
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState, is_lora_a, is_lora_b

Combining: TypeAlias = Literal["flora", "fedavg", "stack", "residual", "svd"]

KEEP_PRODUCTS = ("stack", "residual", "svd")


@dataclass(frozen=True)
class ProductStep:
    """What a department knows after a round.

    Attributes:
        factors: at the common rank; unchanged under stack and svd.
        product: P_d.
        rank_errors: {client_id: relative error of the product that it starts from next}; under svd.
    """

    factors: LoraState
    product: LoraState
    rank_errors: dict[str, float] = field(default_factory=dict)


def combine_products(
    combiner: Combining,
    factors: Mapping[str, torch.Tensor],
    product: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    relative_scalings: Mapping[str, float],
) -> ProductStep:
    """A department's clients into its factors and its product.

    Args:
        combiner: stack, residual or svd.
        factors: the department's, before.
        product: P_d before; empty for none.
        updates: {client_id: trained factors}, of any ranks for stack and svd.
        weights: {client_id: w_c}, of any sum.
        relative_scalings: {client_id: s_c over the common scale}.

    Raises:
        ValueError: if the clients' layers do not match, or under residual their ranks or scales.

    Example:
        >>> def client(b, a):
        ...     return {"q.lora_A.weight": torch.tensor([[a]]), "q.lora_B.weight": torch.tensor([[b]])}
        >>> updates = {"hr/x": client(1.0, 3.0), "hr/y": client(3.0, 5.0)}
        >>> equal = dict.fromkeys(updates, 1.0)
        >>> found = combine_products("residual", client(0.0, 1.0), {}, updates, equal, equal)
        >>> {name: tensor.item() for name, tensor in found.factors.items()}
        {'q.lora_A.weight': 4.0, 'q.lora_B.weight': 2.0}
        >>> round((found.product["q.lora_B.weight"] @ found.product["q.lora_A.weight"]).item(), 5)  # 9 − 2·4
        1.0
    """
    before = [product] if product else []
    if combiner == "stack":
        return ProductStep(dict(factors), add_products([*before, stack_factors(updates, weights, relative_scalings)]))
    if combiner == "residual":
        mean, rest = average_with_residual(updates, weights, relative_scalings)
        missed: LoraState = {}
        for layer, names in pair_names(mean).items():
            missed[names.b], missed[names.a] = rest[layer]
        return ProductStep(mean, add_products([*before, missed]))
    layers = decompose(updates, weights, relative_scalings)
    errors = {}
    for client_id, state in updates.items():
        rank = next(tensor.shape[0] for name, tensor in state.items() if is_lora_a(name))
        errors[client_id] = truncate(layers, rank).error.overall
    return ProductStep(dict(factors), to_svd_form(layers), errors)


class ClientStarts:
    """What the clients of one round start from, whatever the combiner; clients alike share one start.

    Args:
        combiner: any.
        state: of the federation, before the round.
        round_num: of the round.
        seed: the run seed; fresh rows of A are drawn from seeds hashed from it and the round, the same for everybody.
    """

    def __init__(self, combiner: Combining, state: FederationState, round_num: int, seed: int) -> None:
        self.combiner, self.state, self.round_num, self.seed = combiner, state, round_num, seed
        self._made: dict[tuple[str, int, float], LoraState] = {}

    def of(
        self, client_id: str, rank: int, gain: float = 1.0
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
        """(factors to train, product that stays beside them) of a client."""
        department = client_id.split("/", 1)[0]
        product = self.state.products.get(department, {})
        if self.combiner in ("flora", "fedavg", "residual"):
            return self.state.start_of(client_id), product
        key = (department, rank, gain) if self.combiner == "svd" else ("", rank, 1.0)
        if key not in self._made:
            svd = self.combiner == "svd" and product
            self._made[key] = self._leading(product, rank, gain) if svd else self._fresh(rank)
        return self._made[key], product if self.combiner == "stack" else {}

    def _leading(self, product: LoraState, rank: int, gain: float) -> LoraState:
        """The best product of that rank at the client's scale; rows of A₀ where P_d has a lower rank."""
        return truncate(layers_of(product), rank, gain, self._rows(rank, 1)).state

    def _fresh(self, rank: int) -> LoraState:
        """A drawn anew for every round under stack, whose product would else stay in one row space; B = 0."""
        start = self._rows(rank, self.round_num)
        for name, tensor in self.state.initial.items():
            if is_lora_b(name):
                start[name] = torch.zeros(tensor.shape[0], rank)
        return dict(sorted(start.items()))

    def _rows(self, rank: int, draw: int) -> LoraState:
        """`rank` rows of every A: in the first draw those of A₀ as far as they go, then uniform as PEFT draws them."""
        rows = {}
        for name, tensor in self.state.initial.items():
            if is_lora_a(name):
                given = tensor[:rank] if draw == 1 else tensor[:0]
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "rows", draw, name))
                bound = 1 / math.sqrt(tensor.shape[1])
                drawn = torch.empty(rank, tensor.shape[1]).uniform_(-bound, bound, generator=generator)
                rows[name] = torch.cat([given, drawn[len(given) :]])
        return rows
