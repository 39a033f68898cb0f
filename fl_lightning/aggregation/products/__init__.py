"""Combiners: how the LoRA factors of a department's clients become one update ``ΔW = Σ w_c s_c B_c A_c``.

Here s_c is lora_alpha_c / r_c (lora_alpha_c / sqrt(r_c) for rsLoRA) and the weights w_c sum to one. All are pure
functions of states, take clients in sorted order, compute in fp64 and return fp32.

``flora`` (`fl_lightning.flora`): a step of size `momentum` from the department's state towards the mean of the factors.
Works on A alone. Inexact in the product as fedavg is; with a momentum below one also on purpose short of the mean.

``fedavg``: the mean of each factor. Works on A alone. Inexact in the product by the covariance of B and A over clients,
which grows with what the clients learn apart; `error.averaging_error` says by how much.

``stack``: factors side by side. Exact for any ranks, but the rank is the sum of all clients' and grows every round.
The product stands beside the factors, which start afresh with B = 0; what travels down to each client is what all of
them together have sent up.

``residual``: the mean of the factors for the clients, and beside them what it misses. Exact at the clients' rank, which
has to be one for all; the product beside the factors grows by a low-rank residual every round, which every client must
get.

``svd``: the best approximation of ΔW at each client's own rank. Serves clients of any ranks, and says what was cut off.
B and A come back in another gauge than they went, so that A cannot be compared with A₀, nor with itself a round before,
and running averages of factors lose their sense.

`fl_lightning.aggregation.products.department_product` says what a run makes of the last three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fl_lightning.aggregation.products.fedavg import average_factors
from fl_lightning.aggregation.products.residual import average_with_residual
from fl_lightning.aggregation.products.stacking import stack_factors
from fl_lightning.flora import flora_weighted_aggregate
from fl_lightning.linalg.truncation import truncated_svd


@dataclass(frozen=True)
class Combiner:
    """A method and what it asks of a run.

    Attributes:
        function: the method itself.
        paper: arXiv number.
        exact: whether the result holds the mean product (with what stands beside the factors).
        same_rank: all clients must have one rank, and one scale.
        both_factors: clients must hand over B as well as A.
        beside: part of the result stands beside the factors and is not trained; the papers write it into the base.
        changes_rank: the result has another rank than the clients.
        keeps_gauge: A of the result can be compared with the clients' A, as clustering and mixing do.
    """

    function: Callable[..., Any]
    paper: str
    exact: bool = False
    same_rank: bool = False
    both_factors: bool = False
    beside: bool = False
    changes_rank: bool = False
    keeps_gauge: bool = False


COMBINERS: dict[str, Combiner] = {
    "flora": Combiner(flora_weighted_aggregate, "2003.00295", same_rank=True, keeps_gauge=True),
    "fedavg": Combiner(average_factors, "1602.05629", same_rank=True, keeps_gauge=True),
    "stack": Combiner(stack_factors, "2409.05976", exact=True, both_factors=True, beside=True, changes_rank=True),
    "residual": Combiner(
        average_with_residual,
        "2410.09432",
        exact=True,
        same_rank=True,
        both_factors=True,
        beside=True,
        keeps_gauge=True,
    ),
    "svd": Combiner(truncated_svd, "2402.11505", both_factors=True),
}
"""Methods by name."""
