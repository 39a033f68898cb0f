"""Attention over a packed row: every sequence attends only to itself, without a mask and with little padding.

Registered with transformers' `AttentionInterface` as ``fl_packed``, so any model that looks up its attention there can
use it. Calls without a packed row, such as generation, are passed on to ``sdpa``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fl_lightning.modeling.packed_layout import PackedLayout, group_by_length, ungroup

try:
    from torch.nn.attention.varlen import varlen_attn

    VARLEN_ARGUMENTS = frozenset(inspect.signature(varlen_attn).parameters)
except ImportError:
    VARLEN_ARGUMENTS = frozenset()

ATTENTION_NAME = "fl_packed"
CUDA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN, which builds a plan for every new shape: rows of ragged lengths have new shapes in every step."""
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
    window = None if sliding_window is None or packed_layout.longest <= sliding_window else sliding_window
    if can_use_varlen_attention(query, dropout, window):
        return _varlen_attention(query, key, value, packed_layout, scaling, window), None
    if query.is_cuda:  # of the pinned backends only Flash Attention knows grouped queries
        key, value = (_repeat_heads(x, query.shape[1]) for x in (key, value))
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    groups, outputs = packed_layout.groups, []
    with sdpa_kernel(CUDA_BACKENDS) if query.is_cuda else contextlib.nullcontext():
        for q, k, v in zip(*(group_by_length(x, groups) for x in (query, key, value)), strict=True):
            mask = _window_mask(q.shape[2], window, query.device)
            outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, **options))
    return ungroup(outputs, groups), None


def _varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Torch's `varlen_attn` on the row as it is, shape (1, T, heads, head_dim).

    Its arguments grew: 2.10 has `is_causal` only, 2.11 `window_size` and `scale`, 2.12 `enable_gqa`.
    """
    options: dict[str, Any] = {}
    if "enable_gqa" in VARLEN_ARGUMENTS:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = (_repeat_heads(x, query.shape[1]) for x in (key, value))
    if "scale" in VARLEN_ARGUMENTS:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * math.sqrt(query.shape[-1]))
    if "window_size" in VARLEN_ARGUMENTS:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    starts, longest = layout.starts, layout.longest
    output: torch.Tensor = varlen_attn(q, k, v, starts, starts, longest, longest, **options)  # type: ignore[assignment]
    return output.unsqueeze(0)


def _repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(1, key/value heads, T, head_dim) with each head repeated for its queries, shape (1, heads, T, head_dim)."""
    repeats = heads // x.shape[1]
    return x if repeats == 1 else x.unsqueeze(2).expand(-1, -1, repeats, -1, -1).flatten(1, 2)


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


def can_use_varlen_attention(query: torch.Tensor, dropout: float, window: int | None) -> bool:
    """Whether torch's variable-length Flash Attention (Dao 2023, arXiv 2307.08691) can be used.

    It needs a GPU of compute capability 8.0 or above, half precision, no dropout, a head size with a kernel, and for a
    window torch 2.11.
    """
    return (
        bool(VARLEN_ARGUMENTS)
        and (window is None or "window_size" in VARLEN_ARGUMENTS)
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and dropout == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """The causal mask of a sliding window, or None if the sequences fit into the window."""
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ~ones.tril(-window)


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


def packed_kwargs(layout: PackedLayout) -> dict[str, Any]:
    """Keyword arguments for running a switched transformers model on a packed row.

    transformers passes a four-dimensional mask on unchanged, so a placeholder avoids a T × T mask.
    """
    return {
        "packed_layout": layout,
        "attention_mask": torch.empty(PLACEHOLDER_SHAPE, device=layout.starts.device),
    }
