"""The dtype in which adapters compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which the adapters compute: autocast's, or fp32 as the parameters."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def cast(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The tensors in a dtype; `to` is a call even where it changes nothing."""
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]
