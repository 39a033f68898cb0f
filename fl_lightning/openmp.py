"""How torch's threads wait for each other: a short time in a loop, then asleep.

By default an OpenMP library lets its threads spin for milliseconds, because waking them takes longer. If another
program needs the same cores, every thread that spins keeps the one from running that it waits for: two runs at once on
two cores then take ten times as long as one. A short spin costs nothing measurable when a run is alone; see
``benchmarks/systems/two_runs.py``.

OpenMP libraries read these variables when they are loaded, so they are set when the package is imported, before torch.
Child processes inherit them.
"""

from __future__ import annotations

import os
import sys

SHORT_WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""GNU's libgomp, in turns of the loop; Intel's libiomp5 and LLVM's libomp, in milliseconds. Others ignore them."""
VARIABLES = (*SHORT_WAITS, "OMP_WAIT_POLICY")
"""A user who has set one of them has decided how threads wait."""

_set_by_user = {name: os.environ[name] for name in VARIABLES if name in os.environ}
_torch_was_loaded = "torch" in sys.modules


def set_short_waits() -> None:
    """Set `SHORT_WAITS` for this process and its children, unless the user has set one of `VARIABLES`."""
    if not _set_by_user:
        os.environ.update(SHORT_WAITS)


def describe() -> str:
    """The variables that are set, who has set them, and whether they have an effect in this process."""
    if _set_by_user:
        return " ".join(f"{name}={value}" for name, value in _set_by_user.items()) + " (set by you)"
    effect = "without effect here: torch was imported before fl_lightning" if _torch_was_loaded else ""
    purpose = effect or "short waits, so that other programs can run"
    return " ".join(f"{name}={value}" for name, value in SHORT_WAITS.items()) + f" ({purpose})"
