"""Norm clipping: Sun, Kairouz, Suresh, McMahan 2019, "Can You Really Backdoor Federated Learning?" (arXiv 1911.07963).

``s_c = min(1, M / ‖Δ_c‖)``, norms over all tensors together. M is constant, as in the paper, or the median norm of the
round, which adapts to the learning rate and to the progress of training. A client's influence is bounded by its weight
times M; the direction of its update is not checked.
"""

from __future__ import annotations

import math
import statistics

from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Residuals, Weights, check_clients
from fl_lightning.state import norm


def norm_clip(residuals: Residuals, weights: Weights, *, max_norm: float | None = None) -> Selection:
    """Scale longer updates down to the norm M; no client is rejected.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        max_norm: M; None takes the median of the clients' norms, which is zero if more than half of them sent zero.

    Raises:
        ValueError: M is not positive, an update is not finite, no clients, or weights of other clients.

    Example:
        >>> import torch
        >>> residuals = {"hr/a": {"lora_A": torch.tensor([3.0, 4.0])}, "hr/b": {"lora_A": torch.tensor([0.5, 0.0])}}
        >>> norm_clip(residuals, {"hr/a": 1, "hr/b": 1}, max_norm=1.0).scales
        {'hr/a': 0.2, 'hr/b': 1.0}
    """
    if max_norm is not None and not (max_norm > 0 and math.isfinite(max_norm)):
        raise ValueError(f"max_norm: expected a positive finite number or null, got {max_norm}")
    clients = check_clients(residuals, weights)
    norms = {c: norm(residuals[c]) for c in clients}
    for client_id in clients:
        if not math.isfinite(norms[client_id]):
            raise ValueError(f"{client_id}: the update is not finite (NaN or infinity)")
    limit = statistics.median(norms.values()) if max_norm is None else max_norm
    scales = {c: 1.0 if norms[c] <= limit else limit / norms[c] for c in clients}
    return Selection({c: float(weights[c]) for c in clients}, scales)
