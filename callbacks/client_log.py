"""Writes each client's training log: client_runs/<department>/<client>/round_R.csv, a line per optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.linalg.own_mixture import alpha_of
from fl_lightning.storage.files import write_text
from fl_lightning.storage.run_layout import client_losses

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientUpdate
    from fl_lightning.trainer import FederatedTrainer


class ClientLog(FederatedCallback):
    """Writes the loss of each step to disk and logs each client's mean over the round."""

    def on_own_fit_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Log the mean loss of a client's own adapter, and its weight if it learns one."""
        if (alpha := alpha_of(update.state)) is not None:
            trainer.log({f"{update.client_id}/own/alpha": alpha})
        if update.losses:
            trainer.log({f"{update.client_id}/own/train/loss": sum(update.losses) / len(update.losses)})

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Write and log one client's losses."""
        if not update.losses:
            return
        trainer.log({f"{update.client_id}/train/loss": sum(update.losses) / len(update.losses)})
        if trainer.run_folder is None:
            return
        department, client = update.client_id.split("/", 1)
        lines = ["step,train/loss", *(f"{step},{loss:.6g}" for step, loss in enumerate(update.losses, start=1))]
        path = trainer.run_folder / client_losses(department, client, update.round_num)
        trainer.writer.submit(lambda: write_text(path, "\n".join(lines) + "\n"))
