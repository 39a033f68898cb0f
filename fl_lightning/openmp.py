"""How torch's threads wait for each other: a short time in a loop, then asleep; in a long run by the machine's load.

By default an OpenMP library lets its threads spin for milliseconds, because waking them takes longer. If another
program needs the same cores, every thread that spins keeps the one from running that it waits for: two runs at once on
two cores then take ten times as long as one. A short spin costs a run that is alone up to a fifth of its time; see
``benchmarks/systems/two_runs.py``.

OpenMP libraries read these variables when they are loaded, so they are set when the package is imported, before torch.
Child processes inherit them. A command that trains calls `spin_while_alone` instead, which gives GNU's libgomp its
default, and makes it wait shortly while threads of this process queue for a core: libgomp does so by itself (100 turns
of its loop) as soon as it has more threads than the process has cores, so threads are added that sleep.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

SHORT_WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""GNU's libgomp, in turns of the loop; Intel's libiomp5 and LLVM's libomp, in milliseconds. Others ignore them."""
VARIABLES = (*SHORT_WAITS, "OMP_WAIT_POLICY")
"""A user who has set one of them has decided how threads wait."""
LOOK_EVERY = 0.1
"""Seconds between two looks at the load."""
BUSY, CALM = 0.2, 0.1
"""Threads that queue for a core, a mean between two looks: above `BUSY` waits get short, below `CALM` long again."""
CALM_LOOKS = 10
"""Looks in a row that must be calm, so that a program that comes and goes does not switch at every look."""

_TASKS = Path("/proc/self/task")
_set_by_user = {name: os.environ[name] for name in VARIABLES if name in os.environ}
_torch_was_loaded = "torch" in sys.modules


def set_short_waits() -> None:
    """Set `SHORT_WAITS` for this process and its children, unless the user has set one of `VARIABLES`."""
    if not _set_by_user:
        os.environ.update(SHORT_WAITS)


def spin_while_alone() -> None:
    """Load torch so that its threads spin as long as libgomp likes while no other program wants this process's cores.

    Nothing but `set_short_waits` holds where the user has set one of `VARIABLES`, where torch is loaded already, and
    where the system does not tell how long threads queue (Linux does). Children still get `SHORT_WAITS`.
    """
    if _set_by_user or "torch" in sys.modules or not (_TASKS.parent / "schedstat").exists():
        return
    del os.environ["GOMP_SPINCOUNT"]
    import torch

    os.environ["GOMP_SPINCOUNT"] = SHORT_WAITS["GOMP_SPINCOUNT"]
    if torch.get_num_threads() > 1:
        threading.Thread(target=_follow_load, name="thread waits", daemon=True).start()


def queued_seconds() -> float:
    """Seconds that this process's threads together have been ready to run without a core. Linux tells."""
    total = 0
    for task in os.listdir(_TASKS):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int((_TASKS / task / "schedstat").read_bytes().split()[1])
    return total / 1e9


class ShortWaits:
    """libgomp waits shortly from `start` to `stop`, by threads that own teams of sleeping threads."""

    def __init__(self, team: int, cores: int) -> None:
        """`team` threads work on one operator (at least 2), on `cores` cores."""
        self.owners = math.ceil((cores + 1 - team) / (team - 1)) if team <= cores else 0
        self._end = threading.Event()

    def start(self) -> None:
        """Add the threads."""
        self._end = threading.Event()
        for _ in range(self.owners):
            threading.Thread(target=self._own_team, args=(self._end,), name="short waits", daemon=True).start()

    def stop(self) -> None:
        """Let the threads end."""
        self._end.set()

    @staticmethod
    def _own_team(end: threading.Event) -> None:
        import torch

        torch.zeros(torch.get_num_threads() * 2**16)  # large enough for every thread to get a part: makes the team
        end.wait()


def _follow_load() -> NoReturn:
    """Switch between long and short waits for the life of the process."""
    import torch

    short, is_short, calm = ShortWaits(torch.get_num_threads(), len(os.sched_getaffinity(0))), False, 0
    queued, looked = queued_seconds(), time.monotonic()
    while True:
        time.sleep(LOOK_EVERY)
        before, then = queued, looked
        queued, looked = queued_seconds(), time.monotonic()
        waiting = (queued - before) / (looked - then)
        calm = calm + 1 if waiting < CALM else 0
        if not is_short and waiting > BUSY:
            short.start()
            is_short, calm = True, 0
        elif is_short and calm >= CALM_LOOKS:
            short.stop()
            is_short = False


def describe() -> str:
    """The variables that are set, who has set them, and whether they have an effect in this process."""
    if _set_by_user:
        return " ".join(f"{name}={value}" for name, value in _set_by_user.items()) + " (set by you)"
    effect = "without effect here: torch was imported before fl_lightning" if _torch_was_loaded else ""
    purpose = effect or "short waits, so that other programs can run; long ones in fit while none wants to"
    return " ".join(f"{name}={value}" for name, value in SHORT_WAITS.items()) + f" ({purpose})"
