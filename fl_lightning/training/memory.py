"""How much memory this process takes, and a ceiling for it."""

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
    """Resident memory of this process now, in MiB; the peak where the system does not tell the current value."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / MIB
    return peak_resident_mib()


def peak_resident_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


class MemoryCeiling:
    """Keeps ``fabric.memory_limit_mb``.

    A GPU's allocator keeps to it by itself and raises `torch.OutOfMemoryError`. On a CPU the system's own limit counts
    addresses, of which torch has far more than memory, so `check` looks at what is resident.

    Args:
        limit_mb: in MiB; None sets no limit.
        device: that of the fits.
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
            MemoryError: if it is not, though what was free has been given back to the system.
        """
        if self._limit is None or resident_mib() <= self._limit:
            return
        give_back()
        if (taken := resident_mib()) > self._limit:
            raise MemoryError(f"{taken:,.0f} MiB taken, fabric.memory_limit_mb is {self._limit:,}")


def give_back() -> None:
    """Give free memory back to the system: glibc keeps what was freed for later."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system through torch, had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
