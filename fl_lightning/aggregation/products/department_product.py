"""Departments that keep products: the results of a round under the combiners ``stack``, ``residual`` and ``svd``.

Nothing is written into the base model. Where the papers add to the base, each department keeps one low-rank product P_d
besides its factors, in SVD form and of the rank that it needs. So the base may be quantized to 4 bits, one base serves
all departments, and an exported adapter is a plain LoRA adapter that holds everything.

============  =============================  =====================  ================================
combiner      clients start from             added, not trained     P_d after the round
============  =============================  =====================  ================================
``stack``     a new A, B = 0                 P_d                    P_d + Σ w_c s_c B_c A_c
``residual``  B̄, Ā                           P_d                    P_d + Σ w_c s B_c A_c − s B̄ Ā
``svd``       the best rank r_c of P_d       nothing                Σ w_c s_c B_c A_c
============  =============================  =====================  ================================

`fl_lightning.aggregation.products.client_start` gives the starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch

from fl_lightning.aggregation.products.residual import average_with_residual
from fl_lightning.aggregation.products.stacking import stack_factors
from fl_lightning.config.federation import ProductCombiner
from fl_lightning.linalg.adapter_algebra import add_products, to_svd_form
from fl_lightning.linalg.factors import pair_names
from fl_lightning.linalg.truncation import decompose, truncate
from fl_lightning.state import LoraState, is_lora_a

KEEP_PRODUCTS: tuple[str, ...] = get_args(ProductCombiner)
"""Combiners under which a department keeps a product."""


@dataclass(frozen=True)
class ProductStep:
    """A department's factors and product after a round.

    Attributes:
        factors: at the common rank; unchanged under stack and svd.
        product: P_d.
        rank_errors: {client_id: relative error of the product from which the client starts next}, under svd.
    """

    factors: LoraState
    product: LoraState
    rank_errors: dict[str, float] = field(default_factory=dict)


def combine_products(
    combiner: str,
    factors: Mapping[str, torch.Tensor],
    product: Mapping[str, torch.Tensor],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    relative_scalings: Mapping[str, float],
) -> ProductStep:
    """Combine a department's clients into its factors and its product.

    Args:
        combiner: one of `KEEP_PRODUCTS`.
        factors: of the department, before the round.
        product: P_d before the round; may be empty.
        updates: {client_id: trained factors}, of any ranks for stack and svd.
        weights: {client_id: weight}; normalized here.
        relative_scalings: {client_id: s_c divided by the common scale}.

    Raises:
        ValueError: if the clients' layers differ, or under residual their ranks or scales.

    Example:
        >>> def client(b, a):
        ...     return {"q.lora_A.weight": torch.tensor([[a]]), "q.lora_B.weight": torch.tensor([[b]])}
        >>> updates = {"hr/x": client(1.0, 3.0), "hr/y": client(3.0, 5.0)}
        >>> equal = dict.fromkeys(updates, 1.0)
        >>> step = combine_products("residual", client(0.0, 1.0), {}, updates, equal, equal)
        >>> {name: tensor.item() for name, tensor in step.factors.items()}
        {'q.lora_A.weight': 4.0, 'q.lora_B.weight': 2.0}
        >>> round((step.product["q.lora_B.weight"] @ step.product["q.lora_A.weight"]).item(), 5)  # 9 − 2·4
        1.0
    """
    return _COMBINERS[combiner](factors, [product] if product else [], updates, weights, relative_scalings)


def stack(
    factors: Mapping[str, torch.Tensor],
    before: list[Mapping[str, torch.Tensor]],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scalings: Mapping[str, float],
) -> ProductStep:
    """Add the clients' stacked product to the department's."""
    return ProductStep(dict(factors), add_products([*before, stack_factors(updates, weights, scalings)]))


def residual(
    factors: Mapping[str, torch.Tensor],
    before: list[Mapping[str, torch.Tensor]],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scalings: Mapping[str, float],
) -> ProductStep:
    """Average the factors, and add to the department's product what this average misses."""
    mean, missing = average_with_residual(updates, weights, scalings)
    missing_state: LoraState = {}
    for layer, names in pair_names(mean).items():
        missing_state[names.b], missing_state[names.a] = missing[layer]
    return ProductStep(mean, add_products([*before, missing_state]))


def svd(
    factors: Mapping[str, torch.Tensor],
    before: list[Mapping[str, torch.Tensor]],
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scalings: Mapping[str, float],
) -> ProductStep:
    """Replace the department's product by the clients' mean product, with its error at each client's rank."""
    layers = decompose(updates, weights, scalings)
    errors = {}
    for client_id, state in updates.items():
        rank = next(tensor.shape[0] for name, tensor in state.items() if is_lora_a(name))
        errors[client_id] = truncate(layers, rank).error.overall
    return ProductStep(dict(factors), to_svd_form(layers), errors)


_COMBINERS: dict[str, Callable[..., ProductStep]] = {name: globals()[name] for name in KEEP_PRODUCTS}
