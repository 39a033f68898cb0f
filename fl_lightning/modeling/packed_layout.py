"""The sequences of a packed row, as attention kernels take them: by their starts, or in groups of similar length."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from fl_lightning.data.transfer import to_device

MIN_LENGTH_RATIO = 0.8
"""Sequences share a call if the shortest has at least this share of the tokens of the longest."""
LENGTH_SLACK = 8
"""Sequences also share a call if the shortest has at most this many tokens less than the longest."""


@dataclass(frozen=True)
class LengthGroups:
    """A packed row of T tokens as groups of sequences of similar length, with P ≥ T positions in total.

    Attributes:
        sizes: (number of sequences, length of the longest) of each group.
        index: the token at each position, shape (P,); padding repeats the last token of its sequence.
        inverse: the position of each token, shape (T,).
        real: False for padding, shape (P, 1, 1); None if there is no padding.
    """

    sizes: tuple[tuple[int, int], ...]
    index: torch.Tensor
    inverse: torch.Tensor
    real: torch.Tensor | None

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device) -> LengthGroups:
        """The groups of sequences of these lengths, in row order."""
        starts = [0, *accumulate(lengths)]
        order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
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
        padded = None if bool(mask.all()) else to_device(mask[:, None, None], device)
        index, inverse = (to_device(positions, device) for positions in (flat, inverse))
        return cls(tuple((len(group), lengths[group[0]]) for group in members), index, inverse, padded)


@dataclass(frozen=True)
class PackedLayout:
    """The sequences of a packed row; made once a row, on the host, for all layers.

    Attributes:
        lengths: tokens of each sequence, in row order.
        starts: the first token of each sequence, then T; int32, for variable-length kernels.
        longest: tokens of the longest sequence, or a bound of it.
    """

    lengths: tuple[int, ...]
    starts: torch.Tensor
    longest: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device) -> PackedLayout:
        """The layout of sequences of these lengths, in row order."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(lengths), to_device(starts, device), max(lengths))

    @functools.cached_property
    def groups(self) -> LengthGroups:
        """The groups by length, for kernels that take sequences of one length; made when first asked for."""
        return LengthGroups.from_lengths(self.lengths, self.starts.device)


def group_by_length(x: torch.Tensor, groups: LengthGroups) -> tuple[torch.Tensor, ...]:
    """The positions of each group of sequences, padded at their ends.

    Args:
        x: of the tokens of a row, shape (1, heads, T, head_dim).
        groups: of the row.

    Returns:
        Shape (sequences, heads, longest, head_dim) for each group.
    """
    parts: tuple[torch.Tensor, ...] = _Group.apply(x, groups)  # type: ignore[no-untyped-call]
    return parts


def ungroup(parts: Sequence[torch.Tensor], groups: LengthGroups) -> torch.Tensor:
    """The tokens of a row, shape (1, T, heads, head_dim), from what `group_by_length` returns."""
    tokens: torch.Tensor = _Ungroup.apply(groups, *parts)  # type: ignore[no-untyped-call]
    return tokens


class _Group(torch.autograd.Function):
    """Each token has one position besides padding, so the backward pass is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, groups: LengthGroups) -> tuple[torch.Tensor, ...]:
        ctx.groups = groups
        return _split(x.squeeze(0).transpose(0, 1).index_select(0, groups.index), groups)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        tokens = _join(grads).index_select(0, ctx.groups.inverse)
        return tokens.transpose(0, 1).unsqueeze(0), None


class _Ungroup(torch.autograd.Function):
    """Padding is dropped, and its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, groups: LengthGroups, *parts: torch.Tensor) -> torch.Tensor:
        ctx.groups = groups
        return _join(parts).index_select(0, groups.inverse).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        positions = grads[0].squeeze(0).index_select(0, ctx.groups.index)
        if ctx.groups.real is not None:
            positions.mul_(ctx.groups.real)
        return (None, *_split(positions, ctx.groups))


def _split(positions: torch.Tensor, groups: LengthGroups) -> tuple[torch.Tensor, ...]:
    """(P, heads, head_dim) to (sequences, heads, longest, head_dim) of each group, as views."""
    parts = torch.split(positions, [count * length for count, length in groups.sizes])
    return tuple(
        part.view(count, length, *part.shape[1:]).transpose(1, 2)
        for part, (count, length) in zip(parts, groups.sizes, strict=True)
    )


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inverse of `_split`."""
    flat = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    return torch.cat(flat) if len(flat) > 1 else flat[0]
