"""Figures of many clients as distributions, for loggers that would get a column for every client."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

MAX_CLIENTS = 256
"""A federation with more clients logs distributions."""

QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


def client_distributions(row: Mapping[str, float], client_ids: Container[str]) -> dict[str, float]:
    """A row whose figures of clients are replaced by quantiles over a department's clients.

    Args:
        row: {metric: value}; a client's metrics begin with its id.
        client_ids: of all clients.

    Returns:
        The row with ``hr/clients/eval/loss/p50`` and the others of `QUANTILES` in place of ``hr/client_0/eval/loss``.

    Example:
        >>> row = {"hr/eval/loss": 2.0, "hr/a/eval/loss": 1.0, "hr/b/eval/loss": 3.0}
        >>> distributions = client_distributions(row, {"hr/a", "hr/b"})
        >>> distributions["hr/eval/loss"], distributions["hr/clients/eval/loss/p50"], len(distributions)
        (2.0, 2.0, 6)
    """
    others: dict[str, float] = {}
    values: dict[str, list[float]] = {}
    for name, value in row.items():
        department, *rest = name.split("/")
        if len(rest) > 1 and f"{department}/{rest[0]}" in client_ids:
            values.setdefault("/".join([department, "clients", *rest[1:]]), []).append(value)
        else:
            others[name] = value
    for name, of_clients in values.items():
        levels = np.quantile(of_clients, list(QUANTILES.values())).tolist()
        others.update({f"{name}/{level}": value for level, value in zip(QUANTILES, levels, strict=True)})
    return others
