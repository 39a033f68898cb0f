"""Attention over a packed row: every sequence attends to itself only, without a mask and without padding work.

Registered with transformers' `AttentionInterface` under the name ``fl_packed``; any model that takes its attention from
there can use it. Calls that are not packed (generation, say) go on to ``sdpa``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "fl_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequence_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention inside each sequence of a packed row.

    Args:
        module: the attention module.
        query: shape (1, heads, T, head_dim).
        key: shape (1, key/value heads, T, head_dim).
        value: as key.
        attention_mask: not looked at where `sequence_lengths` is given.
        dropout: on the attention weights.
        scaling: of the scores.
        sequence_lengths: tokens of each sequence, Σ = T; None hands the call to sdpa.
        sliding_window: a token sees at most so many tokens, itself included.
        **kwargs: what else the model passes on.

    Returns:
        (output of shape (1, T, heads, head_dim), None).
    """
    if sequence_lengths is None:
        result: tuple[torch.Tensor, torch.Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    pieces = (torch.split(tensor, list(sequence_lengths), dim=2) for tensor in (query, key, value))
    for q, k, v in zip(*pieces, strict=True):
        window = _window(q, sliding_window)
        outputs.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=window,
                dropout_p=dropout,
                is_causal=window is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _window(query: torch.Tensor, sliding_window: int | None) -> torch.Tensor | None:
    """The causal mask of a sliding window, or None where the sequence fits into the window."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ~ones.tril(-sliding_window)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_packed_attention(model: Any) -> bool:
    """Switch a transformers model to packed attention where its architecture can take it; whether it could."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    model.set_attn_implementation(NAME)
    return True


def packed_kwargs(config: Any, lengths: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """Keyword arguments with which a transformers model runs a packed row.

    A four-dimensional mask is passed on by transformers as it is, so a placeholder keeps it from building a T × T mask.
    Other models get none and derive the block-causal mask from ``position_ids``.
    """
    if getattr(config, "_attn_implementation", None) != NAME:
        return {}
    return {"sequence_lengths": lengths, "attention_mask": torch.empty(1, 1, 1, 1, device=device)}
