"""Logs current and peak memory of the process, and of the GPU if there is one, after every round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.training.memory import MIB, peak_resident_mib, resident_mib

if TYPE_CHECKING:
    from fl_lightning.trainer import FederatedTrainer


class MemoryMonitor(FederatedCallback):
    """Logs ``memory/rss_mib`` and ``memory/peak_rss_mib``; on a GPU ``memory/gpu_mib``, ``memory/peak_gpu_mib``."""

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Log the metrics."""
        trainer.log({"memory/rss_mib": resident_mib(), "memory/peak_rss_mib": peak_resident_mib()})
        device = trainer.fabric.device
        if device.type == "cuda":
            trainer.log(
                {
                    "memory/gpu_mib": torch.cuda.memory_allocated(device) / MIB,
                    "memory/peak_gpu_mib": torch.cuda.max_memory_allocated(device) / MIB,
                }
            )
