"""The ``data`` block: the departments' records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fl_lightning.config.checks import Block, Interval, OpenFraction, PositiveInt

EXAMPLE_DEPARTMENTS = "bundled:departments"
"""Name of the example data inside the package."""


@dataclass
class DataConfig(Block, key="data"):
    """The departments' records and how many of them are used."""

    root: str = EXAMPLE_DEPARTMENTS
    """A folder of departments, or bundled:departments."""
    clients_per_dept: PositiveInt = 3
    """Use the first n clients of each department, in natural sort order."""
    max_records: PositiveInt = 128
    """Use at most n training records of each client."""
    max_length: Annotated[int, Interval(8)] = 512
    """Tokens per record; longer records are cut, first at the beginning of the prompt."""
    eval_fraction: OpenFraction = 0.2
    """Share of the records held out for evaluation if a client is a single file without an eval split, in (0, 1)."""
