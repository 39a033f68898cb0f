"""A run at the round in which its selection records have their lowest loss, beside its last round.

All departments stop in the same round here, so that what the run has cost until then is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from fl_lightning.runs.artifacts import RunArtifacts

STOPPING = ("last_loss", "best_loss", "best_round", "tokens", "tokens_to_best", "bytes", "bytes_to_best")
"""Held-out loss after the last and the best round, which round that is, and training tokens and bytes of adapters sent
both ways in all rounds and up to it."""


def stopping_metrics(run: RunArtifacts, rounds: int, *, own: bool) -> dict[str, float | None]:
    """{name in `STOPPING`: value}; None where it is unknown, which the best round is without early stopping.

    Args:
        run: of ``training.early_stopping``, or another one.
        rounds: of the run.
        own: whether clients share nothing: losses are then means over departments of their clients' losses, and the
            best round is that of the clients' selection records.
    """
    held_out = _client_means(run) if own else run.mean_loss
    selection = {r: loss for r, loss in (run.own_selection_loss if own else run.selection_loss).items() if r > 0}
    best = min(selection, key=lambda r: (selection[r], r)) if selection else None
    bytes_sent = {number: sum(levels.values()) for number, levels in run.bytes_sent.items()}
    return {
        "last_loss": held_out.get(rounds),
        "best_loss": None if best is None else held_out.get(best),
        "best_round": best,
        "tokens": _sum(run.tokens, rounds),
        "tokens_to_best": None if best is None else _sum(run.tokens, best),
        "bytes": _sum(bytes_sent, rounds),
        "bytes_to_best": None if best is None else _sum(bytes_sent, best),
    }


def _client_means(run: RunArtifacts) -> dict[int, float]:
    """{round: mean over departments of the mean loss of their clients' own adapters}."""
    return {
        number: fmean(fmean(client["loss"] for client in clients.values()) for clients in departments.values())
        for number, departments in run.client_metrics.items()
        if departments and all(departments.values())
    }


def _sum(values: Mapping[int, float], rounds: int) -> float | None:
    """The sum over the first rounds; None if one is missing."""
    total = sum(values.get(number, math.nan) for number in range(1, rounds + 1))
    return None if math.isnan(total) else float(total)
