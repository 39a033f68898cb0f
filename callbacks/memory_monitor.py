"""Logs the memory of the process, and of the GPU where there is one, after every round and at its peak."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fl_lightning.callbacks.base import FederatedCallback

if TYPE_CHECKING:
    from fl_lightning.trainer import FederatedTrainer

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


class MemoryMonitor(FederatedCallback):
    """Figures ``memory/rss_mib`` and ``memory/peak_rss_mib``; on a GPU ``memory/gpu_mib``, ``memory/peak_gpu_mib``."""

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Log the figures."""
        trainer.log({"memory/rss_mib": resident_mib(), "memory/peak_rss_mib": peak_resident_mib()})
        device = trainer.fabric.device
        if device.type == "cuda":
            trainer.log(
                {
                    "memory/gpu_mib": torch.cuda.memory_allocated(device) / MIB,
                    "memory/peak_gpu_mib": torch.cuda.max_memory_allocated(device) / MIB,
                }
            )
