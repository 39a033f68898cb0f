"""A packed row as groups of sequences of similar length, for attention kernels that take sequences of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

MIN_LENGTH_RATIO = 0.8
"""Sequences share a call if the shortest has at least this share of the tokens of the longest."""
LENGTH_SLACK = 8
"""Sequences also share a call if the shortest has at most this many tokens less than the longest."""


@dataclass(frozen=True)
class PackedLayout:
    """A packed row of T tokens as groups of sequences of similar length, with P ≥ T positions in total.

    Attributes:
        groups: (number of sequences, length of the longest) of each group.
        index: the token at each position, shape (P,); padding repeats the last token of its sequence.
        inverse: the position of each token, shape (T,).
        real: False for padding, shape (P, 1, 1); None if there is no padding.
        starts: the first token of each sequence, then T; int32, for variable-length kernels.
        longest: number of tokens of the longest sequence.
    """

    groups: tuple[tuple[int, int], ...]
    index: torch.Tensor
    inverse: torch.Tensor
    real: torch.Tensor | None
    starts: torch.Tensor
    longest: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device) -> PackedLayout:
        """The layout of sequences of these lengths, in row order."""
        starts = [0, *accumulate(lengths)]
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        members: list[list[int]] = []
        for i in order:
            longest = lengths[members[-1][0]] if members else 0
            if members and (lengths[i] >= MIN_LENGTH_RATIO * longest or longest - lengths[i] <= LENGTH_SLACK):
                members[-1].append(i)
            else:
                members.append([i])
        parts: list[torch.Tensor] = []
        real: list[torch.Tensor] = []
        for group in members:
            steps = torch.arange(lengths[group[0]])
            begin = torch.tensor([starts[i] for i in group])[:, None]
            length = torch.tensor([lengths[i] for i in group])[:, None]
            parts.append((begin + torch.minimum(steps, length - 1)).flatten())
            real.append((steps < length).flatten())
        flat, mask = torch.cat(parts), torch.cat(real)
        inverse = torch.empty(starts[-1], dtype=torch.long)
        inverse[flat[mask]] = mask.nonzero().squeeze(1)
        padded = None if bool(mask.all()) else mask[:, None, None].to(device, non_blocking=True)
        groups = tuple((len(group), lengths[group[0]]) for group in members)
        begins = torch.tensor(starts, dtype=torch.int32).to(device, non_blocking=True)
        index, inverse = (positions.to(device, non_blocking=True) for positions in (flat, inverse))
        return cls(groups, index, inverse, padded, begins, max(lengths))


def group_by_length(x: torch.Tensor, layout: PackedLayout) -> tuple[torch.Tensor, ...]:
    """The positions of each group of sequences, padded at their ends.

    Args:
        x: of the tokens of a row, shape (1, heads, T, head_dim).
        layout: of the row.

    Returns:
        Shape (sequences, heads, longest, head_dim) for each group.
    """
    groups: tuple[torch.Tensor, ...] = _Group.apply(x, layout)  # type: ignore[no-untyped-call]
    return groups


def ungroup(groups: Sequence[torch.Tensor], layout: PackedLayout) -> torch.Tensor:
    """The tokens of a row, shape (1, T, heads, head_dim), from what `group_by_length` returns."""
    tokens: torch.Tensor = _Ungroup.apply(layout, *groups)  # type: ignore[no-untyped-call]
    return tokens


class _Group(torch.autograd.Function):
    """Each token has one position besides padding, so the backward pass is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: PackedLayout) -> tuple[torch.Tensor, ...]:
        ctx.layout = layout
        positions = x.squeeze(0).transpose(0, 1).index_select(0, layout.index)
        return _split(positions, layout)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        tokens = _join(grads).index_select(0, ctx.layout.inverse)
        return tokens.transpose(0, 1).unsqueeze(0), None


class _Ungroup(torch.autograd.Function):
    """Padding is dropped, and its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, layout: PackedLayout, *groups: torch.Tensor) -> torch.Tensor:
        ctx.layout = layout
        return _join(groups).index_select(0, layout.inverse).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        positions = grads[0].squeeze(0).index_select(0, ctx.layout.index)
        if ctx.layout.real is not None:
            positions.mul_(ctx.layout.real)
        return (None, *_split(positions, ctx.layout))


def _split(positions: torch.Tensor, layout: PackedLayout) -> tuple[torch.Tensor, ...]:
    """(P, heads, head_dim) to (sequences, heads, longest, head_dim) of each group, as views."""
    parts = positions.split([count * length for count, length in layout.groups])
    return tuple(
        part.view(count, length, *part.shape[1:]).transpose(1, 2)
        for part, (count, length) in zip(parts, layout.groups, strict=True)
    )


def _join(groups: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inverse of `_split`."""
    parts = [group.transpose(1, 2).flatten(0, 1) for group in groups]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
