"""Attention over a packed row: every sequence attends to itself only, without a mask and without padding work.

Registered with transformers' `AttentionInterface` under the name ``fl_packed``; any model that takes its attention from
there can use it. Calls that are not packed (generation, say) go on to ``sdpa``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn

    VARLEN = {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
except ImportError:
    VARLEN = False

NAME = "fl_packed"
ALIKE = 0.8
"""Sequences go into one call where the shortest is at least this share of the longest, or within SLACK tokens of it."""
SLACK = 8


@dataclass(frozen=True)
class Layout:
    """How a packed row of T tokens is cut into groups of sequences of like length, P ≥ T positions in all.

    Attributes:
        groups: (sequences, longest length) of each group.
        index: the token at each position, shape (P,); padding points at the sequence's last token.
        inverse: the position of each token, shape (T,).
        real: 0 where a position is padding, shape (P, 1, 1); None where there is no padding.
        starts: the first token of each sequence, and T, int32, for kernels that take sequences of any length.
        longest: tokens of the longest sequence.
    """

    groups: tuple[tuple[int, int], ...]
    index: torch.Tensor
    inverse: torch.Tensor
    real: torch.Tensor | None
    starts: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        """The layout of sequences of the lengths given, in row order."""
        starts = [0, *accumulate(lengths)]
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        members: list[list[int]] = []
        for i in order:
            longest = lengths[members[-1][0]] if members else 0
            if members and (lengths[i] >= ALIKE * longest or longest - lengths[i] <= SLACK):
                members[-1].append(i)
            else:
                members.append([i])
        index: list[torch.Tensor] = []
        real: list[torch.Tensor] = []
        for group in members:
            steps = torch.arange(lengths[group[0]])
            begin = torch.tensor([starts[i] for i in group])[:, None]
            length = torch.tensor([lengths[i] for i in group])[:, None]
            index.append((begin + torch.minimum(steps, length - 1)).flatten())
            real.append((steps < length).flatten())
        flat, mask = torch.cat(index), torch.cat(real)
        inverse = torch.empty(starts[-1], dtype=torch.long)
        inverse[flat[mask]] = mask.nonzero().squeeze(1)
        padded = None if bool(mask.all()) else mask[:, None, None].to(device)
        groups = tuple((len(group), lengths[group[0]]) for group in members)
        begins = torch.tensor(starts, dtype=torch.int32, device=device)
        return cls(groups, flat.to(device), inverse.to(device), padded, begins, max(lengths))


class _Group(torch.autograd.Function):
    """Tokens to positions. Each token has one position of its own, so the backward is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.index)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0].index_select(0, ctx.layout.inverse), None


class _Ungroup(torch.autograd.Function):
    """Positions to tokens; what stands at padding is dropped, and its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return y.index_select(0, layout.inverse)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        spread = grads[0].index_select(0, ctx.layout.index)
        return (spread if ctx.layout.real is None else spread * ctx.layout.real), None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: Layout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention inside each sequence of a packed row.

    On a GPU in half precision Flash Attention takes the row as it is. Elsewhere sequences of like length are attended
    in one call; padding at their ends is never seen by a real token, since the attention is causal, so no mask is
    needed.

    Args:
        module: the attention module.
        query: shape (1, heads, T, head_dim).
        key: shape (1, key/value heads, T, head_dim).
        value: as key.
        attention_mask: not looked at where `packed_layout` is given.
        dropout: on the attention weights.
        scaling: of the scores.
        packed_layout: where the sequences are; None hands the call to sdpa.
        sliding_window: a token sees at most so many tokens, itself included.
        **kwargs: what else the model passes on.

    Returns:
        (output of shape (1, T, heads, head_dim), None).
    """
    if packed_layout is None:
        result: tuple[torch.Tensor, torch.Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    grouped_queries = query.shape[1] != key.shape[1]
    if takes_any_lengths(query, dropout):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        starts, longest = packed_layout.starts, packed_layout.longest
        left = -1 if sliding_window is None else sliding_window - 1
        options: dict[str, Any] = {"scale": scaling, "window_size": (left, 0), "enable_gqa": grouped_queries}
        flash: torch.Tensor = varlen_attn(q, k, v, starts, starts, longest, longest, **options)  # type: ignore[assignment]
        return flash[None], None
    sizes = [count * length for count, length in packed_layout.groups]
    grouped = (_Group.apply(x[0].transpose(0, 1), packed_layout) for x in (query, key, value))  # type: ignore[no-untyped-call]
    outputs = []
    # split and not slicing: its backward is one concatenation.
    for (count, length), *parts in zip(packed_layout.groups, *(torch.split(x, sizes) for x in grouped), strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in parts)
        window = _window(length, sliding_window, query.device)
        attended = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=window,
            dropout_p=dropout,
            is_causal=window is None,
            scale=scaling,
            enable_gqa=grouped_queries,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return _Ungroup.apply(joined, packed_layout)[None], None  # type: ignore[no-untyped-call]


def takes_any_lengths(query: torch.Tensor, dropout: float) -> bool:
    """Whether torch's Flash Attention for sequences of any length (Dao 2023, arXiv 2307.08691) can be used.

    It needs a GPU of compute capability 8.0 or above, half precision and a head size it has a kernel for.
    """
    return (
        VARLEN
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and dropout == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """The causal mask of a sliding window, or None where the sequences fit into the window."""
    if sliding_window is None or length <= sliding_window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
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
    return {"packed_layout": Layout.of(lengths, device), "attention_mask": torch.empty(1, 1, 1, 1, device=device)}
