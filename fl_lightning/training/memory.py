"""The memory that this process uses, and a limit for it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

MIB = 2**20


def resident_mib() -> float:
    """Current resident memory of this process in MiB; the peak on systems that do not report the current value."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / MIB
    return peak_resident_mib()


def peak_resident_mib() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


class MemoryLimit:
    """Enforces ``fabric.memory_limit_mb``.

    On a GPU the allocator enforces the limit and raises `torch.OutOfMemoryError`. On a CPU the operating system limits
    the address space, of which torch reserves far more than it uses, so `check` compares the resident memory instead.

    Args:
        limit_mb: in MiB; None sets no limit.
        device: of the training.
    """

    def __init__(self, limit_mb: int | None, device: torch.device) -> None:
        self._limit = limit_mb
        if limit_mb is not None and device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_mb * MIB / total), device)
            self._limit = None

    def check(self) -> None:
        """Check that this process is below its limit.

        Raises:
            MemoryError: if it is above, even after free memory was returned to the system.
        """
        if self._limit is None or resident_mib() <= self._limit:
            return
        release_free_memory()
        if (used := resident_mib()) > self._limit:
            raise MemoryError(
                f"fabric.memory_limit_mb: expected at most {self._limit:,} MiB of resident memory, got {used:,.0f} MiB"
            )


def release_free_memory() -> None:
    """Return free memory to the system, which glibc would keep for later allocations."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system through torch, had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
