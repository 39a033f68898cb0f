"""Where the tokens of each client of a cohort are in a row."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from fl_lightning.data.packing import token_positions
from fl_lightning.data.transfer import to_device
from fl_lightning.modeling.dropout import Keys
from fl_lightning.modeling.low_rank_product import Segments


@dataclass(frozen=True)
class CohortRow:
    """A row of a cohort of K clients; built once, and used by all layers.

    Attributes:
        clients: the segment of each client; None if the only client has all rows of any shape.
        runs: the segment of each run of clients with the same frozen product; None likewise.
        lengths: of the row's sequences.
        token_keys: for dropout; None if it is off.
    """

    clients: Segments | None
    runs: Segments | None = None
    lengths: tuple[int, ...] = ()
    token_keys: Keys | None = None

    @functools.cached_property
    def num_tokens(self) -> int:
        """T; 0 without segments."""
        return sum(self.clients.sizes) if self.clients is not None else 0

    @functools.cached_property
    def owners(self) -> torch.Tensor:
        """The client of each token, shape (T,)."""
        assert self.clients is not None
        sizes = torch.tensor(self.clients.sizes)
        return to_device(torch.repeat_interleave(torch.arange(len(sizes)), sizes), self.clients.ends.device)

    @functools.cached_property
    def positions(self) -> torch.Tensor:
        """Positions of the tokens if the sequences are padded on the right."""
        assert self.clients is not None
        return to_device(token_positions(self.lengths), self.clients.ends.device)
