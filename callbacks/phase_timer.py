"""Logs the seconds that each round spent on fitting, aggregating, evaluating and writing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fl_lightning.callbacks.base import FederatedCallback

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer


class PhaseTimer(FederatedCallback):
    """Logs ``seconds/fit``, ``seconds/aggregate``, ``seconds/evaluate`` and ``seconds/write`` of every round.

    Put it after `Evaluation` and before the callbacks that export and save:

    - fit: from the start of the round to the last update, including the clients' evaluation of their adapters; or to
      the end of the last fit at a site, if sites mask their updates;
    - aggregate: aggregation, clustering and mixing; masks between machines;
    - evaluate: the departments' adapters on held-out records;
    - write: time the writing thread was busy since the previous row. It runs in parallel, so the four do not add up to
      the time of the round.
    """

    def __init__(self) -> None:
        self._started = self._fitted = self._aggregated = 0.0
        self._busy = self._waited = 0.0

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Do not count what was written before the first round."""
        self._busy = trainer.writer.busy

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Start the clock of the fits."""
        self._started = self._fitted = time.perf_counter()
        self._waited = trainer.writer.waited

    def on_step_end(self, *, trainer: FederatedTrainer, client_ids: Sequence[str], share: float, tokens: int) -> None:
        """Under secure aggregation between machines there is no single update, only the end of a site's fit."""
        self._fitted = time.perf_counter()

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Stop it; the last update of the round counts."""
        self._fitted = time.perf_counter()

    def on_own_fit_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Own adapters are fitted after the others."""
        self._fitted = time.perf_counter()

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """Stop the clock of aggregation, which `FederatedRound` did before this hook."""
        self._aggregated = time.perf_counter()

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Log the metrics; time spent waiting for the writing thread counts as writing, not as aggregation."""
        now, busy, waited = time.perf_counter(), trainer.writer.busy, trainer.writer.waited - self._waited
        trainer.log(
            {
                "seconds/fit": self._fitted - self._started,
                "seconds/aggregate": max(self._aggregated - self._fitted - waited, 0.0),
                "seconds/evaluate": now - self._aggregated,
                "seconds/write": busy - self._busy,
            }
        )
        self._busy = busy
