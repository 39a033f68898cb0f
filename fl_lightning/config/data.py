"""The ``data`` block: the departments' records."""

from __future__ import annotations

from dataclasses import dataclass

from fl_lightning.config.checks import at_least, check, check_null

EXAMPLE_DEPARTMENTS = "bundled:departments"
"""Name of the example data inside the package."""


@dataclass
class DataConfig:
    """Where the departments' records are and how much of them is used."""

    root: str = EXAMPLE_DEPARTMENTS
    """A folder of departments, or bundled:departments."""
    clients_per_dept: int = 3
    """The first so many clients of each department, in natural order."""
    max_records: int = 128
    """At most so many training records a client."""
    max_length: int = 512
    """Tokens a record; longer ones are cut, the prompt's beginning first."""
    eval_fraction: float = 0.2
    """Share held out where a client is a single file without eval split, in (0, 1)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "data.")
        at_least("data.clients_per_dept", self.clients_per_dept, 1)
        at_least("data.max_records", self.max_records, 1)
        at_least("data.max_length", self.max_length, 8)
        check(0 < self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "a number between 0 and 1")
