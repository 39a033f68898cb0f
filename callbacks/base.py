"""The hooks of a federated run.

Hooks are keyword-only and have names that no LightningModule hook has. A callback reads `trainer.federation` (the state
between rounds) and `trainer.report` (what happened in this one); only `FederatedRound` changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer


class FederatedCallback:
    """Base class; override what you need. Hooks come in this order.

    Attributes:
        wants_client_metrics: whether clients are to evaluate their fitted adapters on their own held-out records.
    """

    wants_client_metrics = False

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Once before the first round; after a resume too."""

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Before the first client of a round; the tasks are the fits to come."""

    def on_step_end(self, *, trainer: FederatedTrainer, client_ids: Sequence[str], share: float, tokens: int) -> None:
        """After an optimizer step of a cohort: share of its fit that is done in (0, 1], and tokens of this step."""

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """After a client's fit, in task order."""

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """After the last client of a round: departments, clusters and mixing are worked out here."""

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """After aggregation: log, export, evaluate, checkpoint."""

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Once after the last round."""

    def on_federation_close(self, *, trainer: FederatedTrainer) -> None:
        """At the very end, after an error too: give back what is held."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs back, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, before `on_federation_start`."""
