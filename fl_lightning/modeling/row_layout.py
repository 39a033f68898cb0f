"""How a model gets the sequences of a batch: the first of three layouts that gives each its loss alone.

==========  ==================================================================================================
layout      what the model gets
==========  ==================================================================================================
packed      one row without padding; attention is replaced by `fl_lightning.modeling.attention`
masked      the same row and the model's own attention; transformers builds the block mask from the positions
padded      a row for each sequence, padded on the right; also right for recurrent models and for ALiBi
==========  ==================================================================================================
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch

from fl_lightning.data.packing import PackedBatch, real_tokens
from fl_lightning.modeling.attention import packed_kwargs
from fl_lightning.modeling.supervised_positions import last_mlp_on

RowLayout = Literal["packed", "masked", "padded"]

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative difference of a sequence's loss that is rounding: kernels round differently for rows of another length."""


def supported_arguments(model: Any) -> frozenset[str]:
    """Names of the arguments of a transformers model's forward pass."""
    return frozenset(inspect.signature(model.forward).parameters)


def target_logits(model: Any, base: Any, batch: PackedBatch, layout: RowLayout) -> torch.Tensor:
    """Logits at the positions whose next token is a target, shape (S, V).

    Args:
        model: the PEFT model around `base`, or `base` itself.
        base: the transformers model.
        batch: T tokens with S targets.
        layout: how the model gets them.
    """
    arguments = supported_arguments(base)
    if layout == "padded":
        return _padded_logits(model, batch, "logits_to_keep" in arguments)
    keep = {"logits_to_keep": batch.keep} if "logits_to_keep" in arguments else {}
    with last_mlp_on(base, batch.keep):
        logits: torch.Tensor = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            **keep,
            **packed_kwargs(model.config, batch.lengths, batch.input_ids.device),
        ).logits[0]
    return logits if keep else logits.index_select(0, batch.keep)


def _padded_logits(model: Any, batch: PackedBatch, keeps_columns: bool) -> torch.Tensor:
    real = real_tokens(batch.lengths, batch.input_ids.device)
    ids = batch.input_ids.new_zeros(real.shape)
    ids[real] = batch.input_ids[0]
    positions = real.flatten().nonzero().squeeze(1)[batch.keep]
    rows, columns = positions // real.shape[1], positions % real.shape[1]
    kept: dict[str, torch.Tensor] = {}
    if keeps_columns:  # the head is most of the work of a small model
        unique: torch.Tensor = torch.unique(columns)
        kept, columns = {"logits_to_keep": unique}, torch.searchsorted(unique, columns)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=real.long(), use_cache=False, **kept).logits
    return logits[rows, columns]


def check_lengths(config: Any) -> tuple[int, ...]:
    """Lengths of sequences that show whether a layout is right: short and long ones, and longer than a small window."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "local_attention")]
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2048
    extra = [window + 5 for window in windows if isinstance(window, int) and window <= 256]
    return tuple(min(length, int(longest)) for length in (12, 3, 33, *extra))
