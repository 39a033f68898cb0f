"""Logs how many seconds of each round went into fitting, aggregating, evaluating and writing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fl_lightning.callbacks.base import FederatedCallback

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer


class PhaseTimer(FederatedCallback):
    """Figures ``seconds/fit``, ``seconds/aggregate``, ``seconds/evaluate`` and ``seconds/write`` of every round.

    It stands behind `Evaluation` and before what exports and saves, whose time is that of writing:

    - fit: from the round's start to its last update, the clients' evaluation of their own adapters included;
    - aggregate: departments, clusters and mixing;
    - evaluate: the departments' adapters on held-out records;
    - write: what the writing thread was busy for since the last such row. It works beside the other phases, so the
      four do not add up to the round.
    """

    def __init__(self) -> None:
        self._started = self._fitted = self._aggregated = 0.0
        self._busy = self._waited = 0.0

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Writes before the first round are not its own."""
        self._busy = trainer.writer.busy

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """The clients begin."""
        self._started = self._fitted = time.perf_counter()
        self._waited = trainer.writer.waited

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """The last of these calls ends the fit."""
        self._fitted = time.perf_counter()

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """The next state is there: its maker's hook runs before this one."""
        self._aggregated = time.perf_counter()

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Log the figures; waiting for the round before to be on the disk is nobody's but the writing thread's."""
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
