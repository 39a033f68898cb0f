"""Tokens of a cohort's step for a model that is loaded, see `fl_lightning.training.cohorts.row_tokens`."""

from __future__ import annotations

import math
from typing import Any

import torch

from fl_lightning.modeling.head_loss import CHUNK_LOGITS
from fl_lightning.modeling.lora import lora_layers
from fl_lightning.training.cohorts import row_tokens
from fl_lightning.training.memory import MIB
from fl_lightning.training.memory_estimate import MARGIN, BaseSizes, head_bytes, layer_sizes, token_bytes


def row_budget(model: Any, device: torch.device, recompute: bool, limit_mb: int | None = None) -> int:
    """Tokens per step of a cohort, the same on all devices of a kind.

    Args:
        model: the PEFT model, on its device.
        device: of the training.
        recompute: whether layers run again in the backward pass.
        limit_mb: ``fabric.memory_limit_mb``, which makes a GPU a smaller one.
    """
    if device.type != "cuda":
        return row_tokens(device.type, 0, 0, None)
    card_bytes = torch.cuda.get_device_properties(device).total_memory
    return row_tokens("cuda", *model_bytes(model, recompute), min(card_bytes, (limit_mb or math.inf) * MIB))


def model_bytes(model: Any, recompute: bool) -> tuple[int, int]:
    """(bytes for each token of a step, bytes that do not grow with it) of a PEFT model on a GPU.

    The first is 0 for models whose config does not name the sizes of a decoder.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # On a GPU weights have the dtype of the computation; embeddings are not quantized.
    computed_bytes = model.get_input_embeddings().weight.element_size()
    fixed = weights + MARGIN["cuda"] + head_bytes(CHUNK_LOGITS["cuda"], computed_bytes)
    inputs = sum(int(layer.in_features) for layer in lora_layers(model).values())
    try:
        sizes = BaseSizes(parameters=0, linear=0, adapter=0, inputs=inputs, **layer_sizes(model.config))
    except (AttributeError, TypeError):
        return 0, fixed
    return token_bytes(sizes, computed_bytes, recompute), fixed
