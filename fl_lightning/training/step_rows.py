"""What an optimizer step of a cohort trains on: its micro-batches as packed rows, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fl_lightning.data.packing import PackedBatch, pack
from fl_lightning.data.row_padding import pad_row
from fl_lightning.data.tokenization import Example
from fl_lightning.data.transfer import computed_ahead, to_device
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.cohort_row import CohortRow
from fl_lightning.training.data_parallel import DataParallelShard

Window = Sequence[Sequence[Example]]
"""The micro-batches of a client's optimizer step; none if the client is finished."""


@dataclass(frozen=True)
class StepRow:
    """A row of K clients.

    Attributes:
        batch: its tokens.
        places: of the clients in it.
        weight: of its losses; 0 if the row only keeps company with other processes' shares of the base model.
    """

    batch: PackedBatch
    places: CohortRow
    weight: float = 1.0


@dataclass(frozen=True)
class StepRows:
    """The rows of one optimizer step of K clients.

    Attributes:
        rows: their gradients add up.
        num_targets: of each client in the whole step, at least 1, shape (K,).
        num_tokens: of all clients.
    """

    rows: list[StepRow]
    num_targets: torch.Tensor
    num_tokens: int


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of a cohort's steps, in the order of the steps.

    Attributes:
        cohort: loaded with the K clients.
        streams: of each client, for its dropout.
        device: of the model.
        parts: divides a row into what the model gets in one forward pass.
        shard: this process's share of every micro-batch; None if it has all of it.
        pads: whether rows are padded, see `fl_lightning.data.row_padding`.
    """

    cohort: LoraCohort
    streams: Sequence[np.random.Philox]
    device: torch.device
    parts: Callable[[PackedBatch], list[PackedBatch]]
    shard: DataParallelShard | None = None
    pads: bool = False

    def steps(self, plans: Sequence[Sequence[Window]]) -> Iterator[StepRows]:
        """The rows of each step of K clients' plans; for a GPU made one step ahead, by a thread."""
        windows = ([plan[step] if step < len(plan) else [] for plan in plans] for step in range(max(map(len, plans))))
        steps = map(self.step, windows)
        # On a CPU the thread would only take its time from the step.
        return computed_ahead(steps) if self.device.type == "cuda" else steps

    def step(self, windows: Sequence[Window]) -> StepRows:
        """The rows of a step.

        Args:
            windows: of each of the K clients.
        """
        rows: list[StepRow] = []
        for index in range(max(map(len, windows))):
            batches = [window[index] if index < len(window) else [] for window in windows]
            weight, local = 1.0, batches if self.shard is None else self.shard.local_batch(batches)
            if self.shard is not None and self.shard.shards_base_model and not any(local):
                local, weight = batches, 0.0  # the other processes wait for this one's share of the base model
            for batch in self.parts(pack(local)) if any(local) else ():
                row = pad_row(batch) if self.pads else batch
                padding = row.num_tokens - batch.num_tokens
                places = self.cohort.row(batch.client_tokens, self.streams, row.lengths, padding)
                rows.append(StepRow(row.to(self.device), places, weight))
        # Every target counts the same: micro-batches of other sizes or answer lengths give the gradient of one batch.
        targets = [max(1, sum(e.num_targets for batch in window for e in batch)) for window in windows]
        tokens = sum(len(e) for window in windows for batch in window for e in batch)
        return StepRows(rows, to_device(torch.tensor(targets), self.device), tokens)
