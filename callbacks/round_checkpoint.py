"""Writes a checkpoint after every round, from which the run resumes."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.checkpoint import checkpoints, save_checkpoint

if TYPE_CHECKING:
    from fl_lightning.federation import FederationState
    from fl_lightning.trainer import FederatedTrainer


class RoundCheckpoint(FederatedCallback):
    """``checkpoints/round_R``: the federation's state, what callbacks keep, and the rows logged so far.

    Args:
        keep: checkpoints of the last so many rounds are kept; 0 keeps all.
    """

    def __init__(self, keep: int = 2) -> None:
        self.keep = keep

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Write the checkpoint, then drop old ones. Runs last, so that it holds everything of the round."""
        if trainer.run_folder is None:
            return
        extra: dict[str, Any] = {
            "callbacks": {type(c).__name__: state for c in trainer.callbacks if (state := c.state_dict())},
            "history": trainer.rows(),
        }
        # As it is now: the callbacks' figures grow while the writer works.
        trainer.writer.submit(partial(self._write, trainer.run_folder, trainer.federation, copy.deepcopy(extra)))

    def _write(self, run_folder: Path, federation: FederationState, extra: dict[str, Any]) -> None:
        save_checkpoint(run_folder / "checkpoints" / f"round_{federation.round_num}", federation, extra)
        if self.keep:
            for old in list(checkpoints(run_folder).values())[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
