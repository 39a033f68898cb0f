"""The ``evaluation`` block: in which rounds, and on whose records, departments are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_lightning.config.checks import Block, PositiveInt

ALL_UP_TO = 128
"""Under ``clients_per_dept: auto``, a department with more clients is evaluated on so many of them."""


@dataclass
class EvaluationConfig(Block, key="evaluation"):
    """How often, and on how many held-out records, adapters are evaluated."""

    every: PositiveInt = 1
    """Evaluate in every n-th round, and in the last one."""
    clients_per_dept: PositiveInt | Literal["auto", "all"] = "auto"
    """Evaluate a department's adapter on n of its clients, drawn once by the seed, or on all; auto takes all up to 128.
    Clients that train in a round also evaluate their own adapters."""
    records: PositiveInt | None = None
    """Use at most n held-out records of each client; null uses all."""

    def num_clients(self, total: int) -> int:
        """How many of a department's `total` clients it is evaluated on.

        Example:
            >>> EvaluationConfig().num_clients(25_000), EvaluationConfig(clients_per_dept="all").num_clients(25_000)
            (128, 25000)
        """
        limit = {"auto": ALL_UP_TO, "all": total}.get(str(self.clients_per_dept), self.clients_per_dept)
        return min(total, int(limit))
