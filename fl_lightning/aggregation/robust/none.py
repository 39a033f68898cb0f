"""No guard: the weighted mean of McMahan et al. 2017 (arXiv 1602.05629), which trusts every client.

``Σ w_c Δ_c / Σ w_c``. One client can move it anywhere.
"""

from __future__ import annotations

from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Residuals, Weights, check_clients


def none(residuals: Residuals, weights: Weights) -> Selection:
    """Everybody with the weight they have; no tensor is read.

    Args:
        residuals: {client_id: Δ_c}.
        weights: {client_id: w_c}.

    Returns:
        All weights, scales 1.

    Raises:
        ValueError: no clients, or weights that do not fit.

    Example:
        >>> none({"hr/a": {}, "hr/b": {}}, {"hr/a": 10, "hr/b": 30})
        Selection(weights={'hr/a': 10.0, 'hr/b': 30.0}, scales={'hr/a': 1.0, 'hr/b': 1.0}, rejected={})
    """
    clients = check_clients(residuals, weights)
    return Selection({c: float(weights[c]) for c in clients}, dict.fromkeys(clients, 1.0))
