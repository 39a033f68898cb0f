"""Writes a checkpoint at the start and after every round, from which the run resumes."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.federation.checkpoint import checkpoints, save_checkpoint
from fl_lightning.federation.retention import kept_rounds

if TYPE_CHECKING:
    from fl_lightning.federation.state import FederationState
    from fl_lightning.trainer import FederatedTrainer


class RoundCheckpoint(FederatedCallback):
    """``checkpoints/round_R``: the federation's state, what callbacks keep, and the rows logged so far.

    Args:
        keep: checkpoints of the last so many rounds are kept; 0 keeps all.
        best: and those of so many rounds with the lowest ``eval/loss``.
        identity: what the run is made of, for a resumed run to compare itself with.
    """

    def __init__(self, keep: int = 2, best: int = 0, identity: Mapping[str, Any] | None = None) -> None:
        self.keep, self.best = keep, best
        self.identity = dict(identity or {})

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Write the checkpoint of round 0, so that a run can be resumed inside its first round."""
        if trainer.round_num == 0:
            self._submit(trainer)

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Write the checkpoint, then drop old ones. Runs last, so that it holds everything of the round."""
        self._submit(trainer)

    def _submit(self, trainer: FederatedTrainer) -> None:
        if trainer.run_folder is None:
            return
        extra: dict[str, Any] = {
            "callbacks": {type(c).__name__: state for c in trainer.callbacks if (state := c.state_dict())},
            "history": trainer.rows(),
            "identity": self.identity,
        }
        # As it is now: the callbacks' figures grow while the writer works.
        write = partial(self._write, trainer.run_folder, trainer.federation, copy.deepcopy(extra))
        trainer.writer.submit(write)
        trainer.writer.submit(partial(trainer.journal.truncate, trainer.federation.round_num))

    def _write(self, run_folder: Path, federation: FederationState, extra: dict[str, Any]) -> None:
        save_checkpoint(run_folder / "checkpoints" / f"round_{federation.round_num}", federation, extra)
        found = checkpoints(run_folder)
        keep = kept_rounds(list(found), extra["history"], last=self.keep, best=self.best)
        for round_num in found.keys() - keep:
            shutil.rmtree(found[round_num], ignore_errors=True)
