"""Attention over a packed row: every sequence attends only to itself, without a mask and with little padding.

Registered with transformers' `AttentionInterface` as ``fl_packed``, so any model that looks up its attention there can
use it. Calls without a packed row, such as generation, are passed on to ``sdpa``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fl_lightning.modeling.packed_layout import PackedLayout, group_by_length, ungroup

try:
    from torch.nn.attention.varlen import varlen_attn

    HAS_VARLEN_ATTENTION = {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
except ImportError:
    HAS_VARLEN_ATTENTION = False

ATTENTION_NAME = "fl_packed"
ORIGINAL = "sdpa"
"""The only attention that is replaced: the one that calls without a packed row are passed on to."""
UNUSED_ARGUMENTS = {
    *("position_ids", "cache_position", "use_cache", "past_key_values", "is_causal"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
}
"""Arguments that models pass to their attention function and that make no difference to a packed row."""
LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Names in transformers' ``layer_types`` of layers that `packed_attention` computes."""
PLACEHOLDER_SHAPE = (1, 1, 1, 1)
"""Of the mask that a model gets with a packed row, see `packed_kwargs`."""


class UnsupportedAttention(ValueError):
    """A model's attention is another one than `packed_attention` computes."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: PackedLayout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention inside each sequence of a packed row.

    On a GPU in half precision, Flash Attention runs on the row as it is. Otherwise sequences of similar length share a
    call, padded at their ends. Attention is causal, so no real token sees the padding and no mask is needed.

    Args:
        module: the attention module.
        query: shape (1, heads, T, head_dim).
        key: shape (1, key/value heads, T, head_dim).
        value: as key.
        attention_mask: ignored if `packed_layout` is given.
        dropout: on the attention weights.
        scaling: of the scores.
        packed_layout: the sequences of the row; None passes the call on to sdpa.
        sliding_window: a token sees at most this many tokens, including itself.
        **kwargs: other arguments of the model, passed on to sdpa.

    Returns:
        (output of shape (1, T, heads, head_dim), None).

    Raises:
        UnsupportedAttention: for a packed row, if the model asks for anything else, such as soft caps or sinks.
    """
    if packed_layout is None:
        result: tuple[torch.Tensor, torch.Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    _check_call(module, attention_mask, sliding_window, kwargs)
    grouped_queries = query.shape[1] != key.shape[1]
    if can_use_varlen_attention(query, dropout):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        starts, longest = packed_layout.starts, packed_layout.longest
        left = -1 if sliding_window is None else sliding_window - 1
        options: dict[str, Any] = {"scale": scaling, "window_size": (left, 0), "enable_gqa": grouped_queries}
        flash: torch.Tensor = varlen_attn(q, k, v, starts, starts, longest, longest, **options)  # type: ignore[assignment]
        return flash[None], None
    outputs = []
    for q, k, v in zip(*(group_by_length(x, packed_layout) for x in (query, key, value)), strict=True):
        window = _window(q.shape[2], sliding_window, query.device)
        outputs.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=window,
                dropout_p=dropout,
                is_causal=window is None,
                scale=scaling,
                enable_gqa=grouped_queries,
            )
        )
    return ungroup(outputs, packed_layout), None


def _check_call(
    module: torch.nn.Module, mask: torch.Tensor | None, sliding_window: int | None, arguments: dict[str, Any]
) -> None:
    """Check that a call asks for causal attention inside each sequence, perhaps in a sliding window, and no more.

    Raises:
        UnsupportedAttention: if it does not.
    """
    if unknown := sorted(k for k, v in arguments.items() if v is not None and k not in UNUSED_ARGUMENTS):
        raise UnsupportedAttention(f"its attention uses {', '.join(unknown)}")
    if arguments.get("is_causal") is False:
        raise UnsupportedAttention("its attention is not causal")
    if mask is not None and mask.shape != PLACEHOLDER_SHAPE:
        raise UnsupportedAttention("its attention has a mask that depends on its inputs")
    config = getattr(module, "config", None)
    if config is not None:
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        expected = window if kinds is None or kinds[module.layer_idx] == "sliding_attention" else None
        if sliding_window != expected:
            raise UnsupportedAttention(
                f"its layers attend to the last {sliding_window} tokens, its config says {expected}"
            )


def can_use_varlen_attention(query: torch.Tensor, dropout: float) -> bool:
    """Whether torch's variable-length Flash Attention (Dao 2023, arXiv 2307.08691) can be used.

    It needs a GPU of compute capability 8.0 or above, half precision, no dropout, and a head size with a kernel.
    """
    return (
        HAS_VARLEN_ATTENTION
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and dropout == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """The causal mask of a sliding window, or None if the sequences fit into the window."""
    if sliding_window is None or length <= sliding_window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ~ones.tril(-sliding_window)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def use_packed_attention(model: Any) -> None:
    """Switch a transformers model to packed attention.

    Raises:
        UnsupportedAttention: if its attention is another one; the model is unchanged.
    """
    text = model.config.get_text_config()
    current = getattr(text, "_attn_implementation", None)
    if getattr(model, "_is_stateful", False):
        raise UnsupportedAttention("it is recurrent")
    if others := sorted(set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES):
        raise UnsupportedAttention(f"it has layers of {', '.join(others)}")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedAttention("its attention cannot be replaced")
    if current not in (ORIGINAL, ATTENTION_NAME):
        raise UnsupportedAttention(f"its attention is transformers' {current}, not {ORIGINAL}")
    if not {"position_ids", "logits_to_keep"} <= inspect.signature(model.forward).parameters.keys():
        raise UnsupportedAttention("it takes no position_ids or no logits_to_keep")
    model.set_attn_implementation(ATTENTION_NAME)


def restore_attention(model: Any) -> None:
    """Switch a model back to the attention that it had before `use_packed_attention`."""
    if getattr(model.config, "_attn_implementation", None) == ATTENTION_NAME:
        model.set_attn_implementation(ORIGINAL)


def packed_kwargs(lengths: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """Keyword arguments for running a switched transformers model on a packed row.

    transformers passes a four-dimensional mask on unchanged, so a placeholder avoids a T × T mask.
    """
    return {
        "packed_layout": PackedLayout.from_lengths(lengths, device),
        "attention_mask": torch.empty(PLACEHOLDER_SHAPE, device=device),
    }
