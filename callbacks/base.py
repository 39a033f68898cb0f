"""The hooks of a federated run.

Hooks are keyword-only and have names that no LightningModule hook has. A callback reads `trainer.federation` (the state
between rounds) and `trainer.report` (what happened in this one); only `FederatedRound` changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer


class FederatedCallback:
    """Base class; override the hooks you need. They are called in this order.

    Attributes:
        wants_client_metrics: whether clients evaluate their fitted adapters on their own held-out records.
    """

    wants_client_metrics = False

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Once before the first round, also of a resumed run."""

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Before the first client of a round; one task for each fit."""

    def on_step_end(self, *, trainer: FederatedTrainer, client_ids: Sequence[str], share: float, tokens: int) -> None:
        """After an optimizer step of a cohort: share of its fit that is done, in (0, 1], and tokens of the step."""

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """After a client's fit, in task order."""

    def on_own_fit_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """After the fit of a client's own adapter, under ``personal.own: during``; in task order."""

    def on_aggregate(self, *, trainer: FederatedTrainer) -> None:
        """After the last client of a round: aggregate, cluster and mix."""

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """After aggregation: log, export, evaluate, checkpoint."""

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Once after the last round."""

    def on_federation_close(self, *, trainer: FederatedTrainer) -> None:
        """At the very end, also after an error: release resources. All callbacks are closed even if one raises."""

    @property
    def state_key(self) -> str:
        """Key of the callback's state in checkpoints; override it where a run has two callbacks of one class."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON values. It is written whole into every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint, before `on_federation_start`."""

    def round_record(self, round_num: int) -> Any:
        """What to keep of one round, as a JSON value that does not change later; None for nothing.

        It is written once, beside the checkpoints; so what grows with every round belongs here.
        """
        return None

    def load_round_records(self, records: Mapping[int, Any]) -> None:
        """Take {round: record} of the rounds up to a checkpoint, after `load_state_dict`."""


def check_state_keys(callbacks: Iterable[FederatedCallback]) -> None:
    """Check that no two callbacks would write their state or records under one key.

    Raises:
        ValueError: naming the key.
    """
    keys: set[str] = set()
    for callback in callbacks:
        names = ("state_dict", "round_record")
        if all(getattr(type(callback), name) is getattr(FederatedCallback, name) for name in names):
            continue
        if callback.state_key in keys:
            raise ValueError(
                f"callbacks: expected one state_key for each callback that keeps state, got {callback.state_key!r} "
                "twice; override state_key in one of them"
            )
        keys.add(callback.state_key)
