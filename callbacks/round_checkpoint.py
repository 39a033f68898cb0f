"""Writes a checkpoint at the start and after every round, from which the run resumes."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.federation.checkpoint import checkpoints, save_checkpoint
from fl_lightning.federation.checkpoint_schema import CheckpointExtra
from fl_lightning.federation.history import HistoryEntry, HistoryFile, Row
from fl_lightning.federation.retention import BEST, kept_rounds
from fl_lightning.storage.run_layout import CHECKPOINTS, HISTORY, checkpoint

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask
    from fl_lightning.federation.state import FederationState
    from fl_lightning.trainer import FederatedTrainer


class RoundCheckpoint(FederatedCallback):
    """``checkpoints/round_R``: the federation's state, the callbacks' states, and where the logged rows end.

    The rows themselves, and what callbacks record of each round, are appended to ``checkpoints/history.jsonl``, so that
    a checkpoint does not grow with the rounds. Rows that are logged after this callback's `on_round_end` come too late.

    Args:
        keep: keep the checkpoints of the last n rounds; 0 keeps all.
        best: additionally keep those of the n rounds with the lowest ``eval/loss``.
        identity: fingerprints of config, clients and base model, which a resumed run compares with its own.
        first_rounds: additionally keep the checkpoints before the first n rounds, from the second on, in which a client
            takes part of which no update has been valid before.
    """

    def __init__(
        self, keep: int = 2, best: int = 0, identity: Mapping[str, Any] | None = None, first_rounds: int = 0
    ) -> None:
        self.keep, self.best, self.first_rounds = keep, best, first_rounds
        self.identity = dict(identity or {})
        self._before_first: list[int] = []
        self._history: HistoryFile
        self._rows_written = 0

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Bring ``history.jsonl`` to this round; write checkpoint 0, so that the first round can be resumed too."""
        if trainer.run_folder is None:
            return
        self._history = HistoryFile(trainer.run_folder / CHECKPOINTS / HISTORY)
        has_checkpoint = trainer.round_num in checkpoints(trainer.run_folder)
        is_fresh = trainer.round_num == 0 and not has_checkpoint
        # Runs of older versions kept the rows in their checkpoints: then the file is made here.
        if is_fresh or not (has_checkpoint and self._history.truncate(trainer.round_num)):
            self._history.replace([] if is_fresh else _entries_so_far(trainer))
        self._rows_written = 0 if is_fresh else len(trainer.history)
        if is_fresh:
            self._submit(trainer)

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Note the round before, if a client takes part for the first time."""
        before, known = trainer.round_num - 1, trainer.federation.examples
        if before and len(self._before_first) < self.first_rounds and any(t.client_id not in known for t in tasks):
            self._before_first.append(before)

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Write the checkpoint, then drop old ones. Runs last, so that it holds everything of the round."""
        if trainer.run_folder is not None:
            self._submit(trainer)

    def _submit(self, trainer: FederatedTrainer) -> None:
        assert trainer.run_folder is not None
        rows = trainer.rows()
        entry = _entry(trainer, trainer.round_num, rows[self._rows_written :])
        self._rows_written = len(rows)
        # As it is now: the callbacks' states change while the writer works.
        states = {c.state_key: copy.deepcopy(state) for c in trainer.callbacks if (state := c.state_dict())}
        extra = CheckpointExtra(callbacks=states, identity=self.identity or None)
        losses = [(step, {BEST: row[BEST]}) for step, row in rows if BEST in row]
        first = set(self._before_first)
        trainer.writer.submit(
            partial(self._write, trainer.run_folder, trainer.federation, entry.line(), extra, losses, first)
        )
        trainer.writer.submit(partial(trainer.journal.truncate, trainer.federation.round_num))

    def _write(
        self,
        run_folder: Path,
        federation: FederationState,
        line: bytes,
        extra: CheckpointExtra,
        losses: list[Row],
        first: set[int],
    ) -> None:
        mark = self._history.append(line)  # first: a checkpoint never refers to a line that may be lost
        save_checkpoint(run_folder / checkpoint(federation.round_num), federation, extra, mark)
        folders = checkpoints(run_folder)
        for round_num in folders.keys() - kept_rounds(list(folders), losses, last=self.keep, best=self.best) - first:
            shutil.rmtree(folders[round_num], ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """The rounds whose checkpoints are kept since a client takes part for the first time in the next one."""
        return {"before_first": list(self._before_first)} if self._before_first else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self._before_first = list(state.get("before_first", []))


def restore_callbacks(callbacks: Iterable[FederatedCallback], extra: CheckpointExtra) -> None:
    """Give callbacks their state and their records of a checkpoint, before `on_federation_start`."""
    for callback in callbacks:
        if callback.state_key in extra.callbacks:
            callback.load_state_dict(extra.callbacks[callback.state_key])
        if callback.state_key in extra.records:
            callback.load_round_records(extra.records[callback.state_key])


def _entry(trainer: FederatedTrainer, round_num: int, rows: list[Row]) -> HistoryEntry:
    records = {c.state_key: c.round_record(round_num) for c in trainer.callbacks}
    return HistoryEntry(round_num, rows, {key: record for key, record in records.items() if record is not None})


def _entries_so_far(trainer: FederatedTrainer) -> list[HistoryEntry]:
    """One entry for each round from 0 to the current one, of what a resumed run was given."""
    rows: dict[int, list[Row]] = {}
    for step, row in trainer.history:
        rows.setdefault(step, []).append((step, row))
    return [_entry(trainer, number, rows.get(number, [])) for number in range(trainer.round_num + 1)]
