"""Several adapters that answer as one: each has a row of the batch; their probabilities of the next token are mixed.

A mixture gives a token ``p = Σ_m π_m softmax(logits_m)``. Its rows share the token that is chosen, so that each adapter
reads the answer so far. Temperature, top-p, penalties and biases apply to log p, as they do to the logits of one
adapter, which are log p up to a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from fl_lightning.modeling.generation.adapter_bank import BankedAdapter


@dataclass(frozen=True, eq=False)
class AdapterMixture:
    """Adapters whose predictions are mixed.

    Attributes:
        adapters: each takes a row of the batch.
        weights: π of the adapters, each above 0, of sum 1.
        fingerprint: digest of weights and adapters, which tells versions apart.
    """

    adapters: tuple[BankedAdapter, ...]
    weights: tuple[float, ...]
    fingerprint: str = ""


ServedModel: TypeAlias = BankedAdapter | AdapterMixture
"""What can answer a prompt."""


def adapters_of(model: ServedModel) -> tuple[BankedAdapter, ...]:
    """The adapters of the rows that a model takes in a batch."""
    return model.adapters if isinstance(model, AdapterMixture) else (model,)


def mix_rows(logits: torch.Tensor, models: Sequence[ServedModel]) -> torch.Tensor:
    """One row for each model: the logits of an adapter as they are, of a mixture log p.

    Args:
        logits: of the rows of all models in their order, shape (rows, V).
        models: adapters and mixtures.

    Returns:
        Shape (len(models), V); fp32 if there is a mixture.

    Example:
        >>> mixture = AdapterMixture((BankedAdapter({}), BankedAdapter({})), (0.5, 0.5))
        >>> logits = torch.tensor([[0.2, 0.8], [0.6, 0.4], [9.0, 9.0]]).log()
        >>> [round(p, 2) for p in mix_rows(logits, [mixture, BankedAdapter({})])[0].exp().tolist()]
        [0.4, 0.6]
    """
    if not any(isinstance(model, AdapterMixture) for model in models):
        return logits
    mixed, row = [], 0
    for model in models:
        own = logits[row : row + len(adapters_of(model))].float()
        row += len(own)
        if isinstance(model, AdapterMixture):
            weights = torch.tensor(model.weights, device=own.device)
            own = torch.logsumexp(own.log_softmax(dim=-1) + weights.log()[:, None], dim=0, keepdim=True)
        mixed.append(own)
    return torch.cat(mixed)
